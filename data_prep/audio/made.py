"""Audio put together when it is read: a file for each speaker, the audio streams of a video, a stretch of a long file.

The result is a seekable file of float32 samples (Sony Wave64, which has no limit of size), with the same bytes on every
machine, so that everything else reads it like a recording that was stored so.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from typing import BinaryIO, cast

import av
import numpy as np
import soundfile
import soxr

from csm.decode import BLOCK, Clock
from data_prep.audio.decode import open_audio, rejected
from data_prep.audio.storage import open_path
from data_prep.audio.stretches import read_stretch
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Made

_IN_MEMORY = 64 << 20  # bytes


def open_made(made: Made) -> BinaryIO:
    """Decodes and joins: each file, or each audio stream, becomes a channel at the highest of the rates.

    Shorter channels end in silence. Of a stretch of a file, nothing after it is decoded, see `read_stretch`. Raises
    `RejectedRecording` and OSError as reading these files would.
    """
    if not made.streams and len(made.files) == 1:
        rate, samples = read_stretch(made.files[0], made.start, made.end)
        return _written(rate, [samples[:, channel] for channel in range(samples.shape[1])], 0, len(samples))
    if made.streams:
        tracks = _streams(made.files[0])
    else:
        tracks = [_mono(path) for path in made.files]
    rate = max(rate for rate, _ in tracks)
    channels = [track if of == rate else soxr.resample(track, of, rate, quality="HQ") for of, track in tracks]
    length = max(map(len, channels))
    first = min(round(made.start * rate), length)
    last = length if made.end is None else min(max(first, round(made.end * rate)), length)
    return _written(rate, channels, first, last)


def _written(rate: int, channels: list[np.ndarray], first: int, last: int) -> BinaryIO:
    """A file of the samples `first` to `last` of channels, float32 [N]; behind a channel's end is silence."""
    file = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="csm-audio-")  # noqa: SIM115
    try:
        with soundfile.SoundFile(file, "w", rate, len(channels), "FLOAT", format="W64") as sound:
            for place in range(first, last, BLOCK):
                block = np.zeros((min(BLOCK, last - place), len(channels)), np.float32)
                for number, channel in enumerate(channels):
                    part = channel[place : place + len(block)]
                    block[: len(part), number] = part
                sound.write(block)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)


def _decoded(path: str) -> tuple[int, np.ndarray]:
    """Rate and samples, float32 [N, C], of a file."""
    with open_path(path) as file:
        reader = open_audio(file, path.rpartition("/")[2])
        blocks = list(reader.blocks())
    if not blocks:
        raise RejectedRecording(Reason.audio_empty, f"{path}: holds no audio samples")
    return reader.header.sample_rate, np.concatenate(blocks)


def _mono(path: str) -> tuple[int, np.ndarray]:
    rate, samples = _decoded(path)
    return rate, samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]


def count_streams(path: str) -> int:
    """Number of audio streams in a container; 0 if it cannot be read."""
    try:
        with open_path(path) as file, av.open(file) as container:
            return len(container.streams.audio)
    except (av.FFmpegError, OSError, ValueError):
        return 0


def _streams(path: str) -> list[tuple[int, np.ndarray]]:
    """Rate and samples, float32 [N], of each audio stream, placed by the container's clock."""
    tracks = []
    try:
        with open_path(path) as file, rejected():
            count = count_streams(path)
            for number in range(count):
                file.seek(0)
                with av.open(file) as container:
                    tracks.append(_stream(container, number, Clock(path, container)))
    except (av.FFmpegError, ValueError) as error:
        raise RejectedRecording(Reason.audio_corrupt, f"{path}: cannot be decoded as audio ({error})") from error
    if not any(len(track) for _, track in tracks):
        raise RejectedRecording(Reason.audio_empty, f"{path}: holds no audio samples")
    return tracks


def _stream(container: av.container.InputContainer, number: int, clock: Clock) -> tuple[int, np.ndarray]:
    stream = container.streams.audio[number]
    rate = stream.rate
    to_mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
    pieces: list[np.ndarray] = []
    filled = 0
    for frame in container.decode(stream):
        if frame.pts is not None and frame.time_base is not None:
            silence = round(clock.pause(frame.pts * frame.time_base, Fraction(filled, rate)) * rate)
            pieces.append(np.zeros(silence, np.float32))
            filled += silence
        for out in to_mono.resample(frame):
            pieces.append(out.to_ndarray().reshape(-1))
            filled += len(pieces[-1])
    return rate, np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
