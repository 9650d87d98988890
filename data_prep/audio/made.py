"""Audio put together when it is read: a file for each speaker, the audio streams of a video, a stretch of a long file.

The result is a seekable file of float32 samples (Sony Wave64, which has no limit of size), with the same bytes on every
machine, so that everything else reads it like a recording that was stored so.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, cast

import av
import numpy as np
import soundfile
import soxr

from csm.audio import mean_of_channels, mix_to_mono, mono_channel
from csm.decode import BLOCK, Clock
from data_prep.audio.decode import open_audio, rejected
from data_prep.audio.storage import open_path
from data_prep.audio.stretches import read_stretch
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Made

log = logging.getLogger(__name__)

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
    return rate, _mixed(samples, path)


def _mixed(samples: np.ndarray, name: str) -> np.ndarray:
    """One channel, float32 [N], of [N, C], as `csm.audio.load_audio` mixes a recording."""
    mono, chosen = mix_to_mono(samples)
    if chosen is not None:
        _warn_of_cancelled(name, chosen)
    return mono


def _warn_of_cancelled(name: str, chosen: int) -> None:
    log.warning("%s: its channels cancel each other; channel %d is used alone", name, chosen)


def count_streams(path: str) -> int:
    """Number of audio streams in a container; 0 if it cannot be read."""
    try:
        with open_path(path) as file, av.open(file) as container:
            return len(container.streams.audio)
    except (av.FFmpegError, OSError, ValueError):
        return 0


def _streams(path: str) -> list[tuple[int, np.ndarray]]:
    """Rate and samples, float32 [N], of each audio stream, placed by the container's clock."""
    try:
        with open_path(path) as file, rejected():
            tracks = [_stream(file, number, path) for number in range(count_streams(path))]
    except (av.FFmpegError, ValueError) as error:
        raise RejectedRecording(Reason.audio_corrupt, f"{path}: cannot be decoded as audio ({error})") from error
    if not any(len(track) for _, track in tracks):
        raise RejectedRecording(Reason.audio_empty, f"{path}: holds no audio samples")
    return tracks


def _stream(file: BinaryIO, number: int, path: str) -> tuple[int, np.ndarray]:
    """Rate and samples of a stream as one channel, as `csm.audio.load_audio` mixes a recording.

    It is mixed while it is decoded, and decoded again if its channels cancel each other.
    """
    energies, mean_energy = np.zeros(1), 0.0
    means: list[np.ndarray] = [np.zeros(0, np.float32)]
    file.seek(0)
    with av.open(file) as container:
        rate = container.streams.audio[number].rate
        for block in _stream_blocks(container, number, path):
            mean = mean_of_channels(block)
            energies = energies + np.einsum("nc,nc->c", block, block)
            mean_energy += float(np.dot(mean, mean))
            means.append(mean)
    chosen = mono_channel(energies, mean_energy) if len(energies) > 1 else None
    if chosen is None:
        return rate, np.concatenate(means)
    _warn_of_cancelled(f"{path}, stream {number}", chosen)
    means.clear()
    file.seek(0)
    with av.open(file) as container:
        return rate, np.concatenate([block[:, chosen].copy() for block in _stream_blocks(container, number, path)])


def _stream_blocks(container: av.container.InputContainer, number: int, path: str) -> Iterator[np.ndarray]:
    """Samples of a stream, float32 [n, C], in parts of any length."""
    clock, stream = Clock(path, container), container.streams.audio[number]
    rate, filled = stream.rate, 0
    convert = av.AudioResampler(format="flt", layout=stream.layout, rate=rate)
    for frame in container.decode(stream):
        if frame.pts is not None and frame.time_base is not None:
            silence = round(clock.pause(frame.pts * frame.time_base, Fraction(filled, rate)) * rate)
            yield np.zeros((silence, stream.channels), np.float32)
            filled += silence
        for out in convert.resample(frame):
            yield out.to_ndarray().reshape(-1, stream.channels)
            filled += out.samples
