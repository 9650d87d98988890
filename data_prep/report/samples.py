"""Random conversations of a dataset, to read and to listen to.

Speech is decoded from the codes if the codec can be loaded, since that is what a model learns from. Otherwise it is cut
from the original recordings, if they still exist; otherwise there is only text.
"""

from __future__ import annotations

import base64
import errno
import io
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from csm.audio import resample
from csm.codec import Codec, SpectralCodec
from csm.config import CodecConfig
from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample, Turn
from csm.decode import AudioReader
from data_prep.audio.decode import open_audio
from data_prep.audio.recording import RecordingAudio, recording_of
from data_prep.reasons import RejectedRecording

MAX_AUDIO_SECONDS = 30.0
"""Longest audio of a player. At 4 kB/s, and a third more as base64, 20 players take 3.2 MB; the spectral codec decodes
11 s of audio per second on one processor."""

_MP3_COMPRESSION = 0.8  # libsndfile's, 0..1: about 4 kB/s for speech at 24 kHz

Voice = Callable[[Sample, Turn], np.ndarray | None]
"""Returns a turn's audio, float32 [N] at the codec's rate, or None if it is not available."""


@dataclass
class Heard:
    """A conversation and its speech."""

    sample: Sample
    audio: bytes | None  # MP3
    seconds: float  # of `audio`
    offsets: list[float]  # start of each turn in `audio`, in seconds


def listen(dataset: ShardedDataset, numbers: np.ndarray) -> tuple[list[Heard], str]:
    """Samples `numbers` with their speech, and a sentence about its origin."""
    codec, problem = _load_codec(dataset)
    with closing(_Cutter(dataset)) as cutter:
        voice = cutter if codec is None else _decoder(codec)
        heard = [_hear(dataset.read(number), voice, dataset.codec.sample_rate) for number in numbers.tolist()]
    if codec is not None:
        return heard, f"Speech is decoded from the dataset's codes ({codec.name}), which is what a model learns from."
    if cutter.full is not None:
        problem += f", and there was no space for all decoded audio in {tempfile.gettempdir()}"
    found, root = sum(entry.audio is not None for entry in heard), dataset.info.audio_root
    if found:
        where = f"the original recordings in {root}, where {found} of {len(heard)} were found"
        return heard, f"Speech is cut from {where}, not decoded: {problem}."
    if cutter.full is not None:
        return heard, f"Text only: {problem}."
    return heard, f"Text only: {problem}, and the original recordings are not on this machine."


def _load_codec(dataset: ShardedDataset) -> tuple[Codec | None, str]:
    """The dataset's codec, or None and the reason. Nothing is downloaded."""
    codec: Codec
    if dataset.codec_file is not None:
        codec = SpectralCodec.load(dataset.codec_file)
    elif dataset.codec.name == "mimi":
        from huggingface_hub import try_to_load_from_cache

        try:
            from moshi.models import loaders  # slow to import

            from csm.codec.mimi import MimiCodec
        except ModuleNotFoundError:
            return None, "the package moshi is not installed"

        cached = try_to_load_from_cache(CodecConfig().repo, loaders.MIMI_NAME)
        if not isinstance(cached, str):
            return None, "Mimi's weights are not on this machine"
        codec = MimiCodec.load(cached, num_codebooks=dataset.codec.num_codebooks)
    else:
        return None, f"its {dataset.codec.name} codec is missing from the dataset"
    if codec.info != dataset.codec:
        return None, f"the {codec.name} weights on this machine are not those of the dataset"
    return codec, ""


def _decoder(codec: Codec) -> Voice:
    def decode(sample: Sample, turn: Turn) -> np.ndarray:
        codes = torch.from_numpy(sample.turn_codes(turn))
        return codec.decode(codes[None])[0, 0].numpy()

    return decode


class _Cutter:
    """Turns as data preparation cuts them, with its decoder; the last recording stays open.

    A recording is decoded whole only if it cannot be entered in the middle, or if all of it decides how it is mixed.
    """

    def __init__(self, dataset: ShardedDataset) -> None:
        self._dataset = dataset
        self._path: Path | None = None
        self._opened = ExitStack()
        self._reader: AudioReader | None = None
        self._whole: RecordingAudio | None = None
        self.full: OSError | None = None
        """Why decoded audio could not be stored."""

    def close(self) -> None:
        """Frees the audio that is open; another turn opens its recording again."""
        self._opened.close()
        self._path = self._reader = self._whole = None

    def __call__(self, sample: Sample, turn: Turn) -> np.ndarray | None:
        path = self._dataset.audio_path(sample)
        if path is None or not path.is_file():
            return None
        try:
            if path != self._path:
                self._open(path, sample)
            assert self._reader is not None and self._whole is not None
            rate, header = self._dataset.codec.sample_rate, self._reader.header
            channel = 0 if turn.channel is None and header.channels == 1 else turn.channel
            if not self._reader.skips or channel is None or channel >= header.channels:
                return self._whole.track(turn.channel, rate, turn.start, turn.end)
            first, last = round(turn.start * header.sample_rate), round(turn.end * header.sample_rate)
            pieces = [block[:, channel] for block in self._reader.blocks(first, last)]
            audio = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *pieces]))
            return resample(audio, header.sample_rate, rate).numpy()
        except (RejectedRecording, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                self.full = error
            return None  # damaged since; the page says that there is no audio

    def _open(self, path: Path, sample: Sample) -> None:
        self.close()
        self._reader = open_audio(self._opened.enter_context(path.open("rb")), path.name)
        self._whole = self._opened.enter_context(closing(RecordingAudio(recording_of(sample, path))))
        self._path = path


def _hear(sample: Sample, voice: Voice, rate: int) -> Heard:
    """Mixes the turns at their original times, with silence between them, since that audio is not in the dataset."""
    offsets = [turn.start - sample.start for turn in sample.turns]
    pieces: list[tuple[int, np.ndarray]] = []
    for turn, offset in zip(sample.turns, offsets, strict=True):
        audio = voice(sample, turn) if offset < MAX_AUDIO_SECONDS else None
        if audio is not None:
            pieces.append((round(offset * rate), audio))
    if not pieces:
        return Heard(sample, None, 0.0, offsets)
    length = min(max(begin + len(audio) for begin, audio in pieces), round(MAX_AUDIO_SECONDS * rate))
    mixed = np.zeros(length, np.float32)
    for begin, audio in pieces:
        part = mixed[begin : begin + len(audio)]
        part += audio[: len(part)]
    buffer = io.BytesIO()
    # Every browser plays MP3.
    soundfile.write(
        buffer, mixed.clip(-1, 1), rate, format="MP3", bitrate_mode="VARIABLE", compression_level=_MP3_COMPRESSION
    )
    return Heard(sample, buffer.getvalue(), length / rate, offsets)


def view(heard: Heard) -> dict[str, Any]:
    """The values that the page shows of a conversation; its lines are turns and events, by time."""
    sample = heard.sample
    lines = [_turn_line(number, turn, heard) for number, turn in enumerate(sample.turns)]
    lines += [
        {"event": event.kind, "speaker": event.speaker, "text": event.text, "at": event.time - sample.start}
        for event in sample.events
    ]
    lines.sort(key=lambda line: line["at"])
    facts = [
        f"{sample.end - sample.start:.1f} s",
        _count(len(sample.turns), "turn"),
        _count(sample.num_speakers, "speaker"),
        sample.lang,
        sample.split,
    ]
    if sample.bandwidth:
        facts.append(f"bandwidth {sample.bandwidth / 1000:.1f} kHz")
    if sample.sample_rate:
        facts.append(f"recorded at {sample.sample_rate / 1000:g} kHz")
    return {
        "key": sample.key,
        "recording": sample.recording,
        "start": sample.start,
        "facts": " · ".join(facts),
        "audio": heard.audio and "data:audio/mpeg;base64," + base64.b64encode(heard.audio).decode(),
        "seconds": heard.seconds,
        "cut": heard.audio is not None and sample.end - sample.start > MAX_AUDIO_SECONDS,
        "lines": lines,
    }


_MEASURES = {
    "ovrl": "OVRL {:.2f}",
    "music": "music {:.0%}",
    "lufs": "{:.0f} LUFS",
    "bandwidth": "{:.0f} Hz",
    "clipped": "clipped {:.2%}",
    "avg_logprob": "log prob {:.2f}",
    "no_speech_prob": "no speech {:.2f}",
    "gain_db": "gain {:+.1f} dB",
    "cer": "CER {:.2f}",
    "half_similarity": "halves {:.2f}",
    "speaker_similarity": "voice {:.2f}",
}


def _turn_line(number: int, turn: Turn, heard: Heard) -> dict[str, Any]:
    seconds = turn.end - turn.start
    measures = [text.format(turn.quality[name]) for name, text in _MEASURES.items() if turn.quality.get(name)]
    offset = heard.offsets[number]
    return {
        "event": None,
        "speaker": turn.speaker,
        "text": turn.text,
        "at": offset,
        "seek": offset if offset < heard.seconds else None,
        "seconds": seconds,
        "gap": turn.gap if number else None,
        "overlap": turn.overlap,
        "loss": turn.loss,
        "measures": " · ".join([f"{len(turn.text) / seconds:.0f} char/s", *measures]),
    }


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
