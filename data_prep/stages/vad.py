"""Stage `vad`: the tracks of a recording, and the speech on each.

A track is the mean of all channels (or the loudest one where they cancel each other, see audio/recording.py), except
that two channels with a speaker each, as of a call, are two tracks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from csm.judges.hub import ModelUnavailable
from csm.judges.silero import FRAME, Silero, speech_spans
from data_prep.audio.recording import RecordingAudio
from data_prep.config import VadBackend, VadConfig
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import MODEL_RATE, Recording, Span, Speech, TrackSpeech
from data_prep.speech.crosstalk import are_two_speakers, is_leak
from data_prep.speech.words import checked_turns, united
from data_prep.stages.base import Item

_BLOCK = 1875 * FRAME  # samples read at once: 60 s


class _Listener(Protocol):
    """Listens to a track block by block; see `SileroStream.feed`."""

    def feed(self, block: np.ndarray) -> np.ndarray: ...


class _AllSpeech:
    def feed(self, block: np.ndarray) -> np.ndarray:
        return np.ones(-(-len(block) // FRAME), np.float32)


class VadStage:
    """Voice activity detection. Recordings with given turns are not searched: their speech is where the turns are.

    Raises `RejectedRecording` (`no_speech`) for a recording without speech.
    """

    name = "vad"
    version = 4  # 3: short calls lost speech; 2: late echoes counted as speech; 1: leaks of more than -20 dB did
    reads: tuple[str, ...] = ()
    result = Speech
    device = "cpu"
    group_seconds = 0.0

    def __init__(self, cfg: VadConfig) -> None:
        self.options = cfg
        self.backend = cfg.backend.value
        self._model: Silero | None = None

    def process(self, items: Sequence[Item]) -> list[Speech]:
        return [self._speech(item.recording, item.audio) for item in items]

    def _speech(self, recording: Recording, audio: RecordingAudio) -> Speech:
        if recording.turns is not None:
            return _given_speech(recording)
        tracks = self._tracks(recording, audio)
        if not any(track.spans for track in tracks):
            raise RejectedRecording(Reason.no_speech, f"no speech in its {recording.seconds:.1f} s")
        return Speech(tracks)

    def _tracks(self, recording: Recording, audio: RecordingAudio) -> list[TrackSpeech]:
        if recording.channels != 2 or recording.two_channel == "no":
            return [self._mixed(audio, recording.seconds)]
        listeners = self._listener(), self._listener()
        heard: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        powers: list[np.ndarray] = []
        for block in _blocks(audio, [0, 1], recording.seconds):
            powers.append(_frame_power(block))
            for listener, channel, found in zip(listeners, block, heard, strict=True):
                found.append(listener.feed(channel))
        probabilities = np.stack([np.concatenate(found) for found in heard])
        power = np.concatenate(powers, axis=1)
        if recording.two_channel == "auto" and not are_two_speakers(power, probabilities >= self.options.threshold):
            return [self._mixed(audio, recording.seconds)]
        probabilities[is_leak(power, probabilities >= self.options.threshold)] = 0.0
        return [TrackSpeech(channel, self._spans(probabilities[channel], recording.seconds)) for channel in (0, 1)]

    def _mixed(self, audio: RecordingAudio, seconds: float) -> TrackSpeech:
        listener = self._listener()
        found = [listener.feed(block[0]) for block in _blocks(audio, [None], seconds)]
        return TrackSpeech(None, self._spans(np.concatenate(found), seconds))

    def _listener(self) -> _Listener:
        if self.options.backend is VadBackend.none:
            return _AllSpeech()
        if self._model is None:
            try:
                self._model = Silero()
            except ModelUnavailable as error:
                raise ModelUnavailable(f"{error}, or vad.backend=none") from error
        return self._model.stream()

    def _spans(self, probabilities: np.ndarray, seconds: float) -> list[Span]:
        if self.options.backend is VadBackend.none:
            return [Span(0.0, seconds)]
        spans = speech_spans(
            probabilities,
            round(seconds * MODEL_RATE),
            threshold=self.options.threshold,
            min_speech_seconds=self.options.min_speech_seconds,
            min_silence_seconds=self.options.min_silence_seconds,
            pad_seconds=self.options.pad_seconds,
        )
        return [Span(start, min(end, seconds)) for start, end in spans]


def _given_speech(recording: Recording) -> Speech:
    spans: dict[int | None, list[Span]] = {}
    for turn in checked_turns(recording):
        if turn.rejection is None:
            spans.setdefault(turn.given.channel, []).append(Span(turn.start, turn.end))
    order = sorted(spans, key=lambda channel: -1 if channel is None else channel)
    return Speech([TrackSpeech(channel, united(spans[channel])) for channel in order])


def _blocks(audio: RecordingAudio, channels: Sequence[int | None], seconds: float) -> Iterator[np.ndarray]:
    """The channels at 16 kHz, float32 [C, N], minute by minute: memory does not grow with the recording."""
    samples = round(seconds * MODEL_RATE)
    for first in range(0, samples, _BLOCK):
        count = min(_BLOCK, samples - first)
        start, end = first / MODEL_RATE, (first + count) / MODEL_RATE
        # resampling may round a block to one sample more or less, by which frames must not drift
        yield np.stack([_of_length(audio.track(channel, MODEL_RATE, start, end), count) for channel in channels])


def _of_length(samples: np.ndarray, count: int) -> np.ndarray:
    return np.pad(samples[:count], (0, max(0, count - len(samples))))


def _frame_power(block: np.ndarray) -> np.ndarray:
    """Mean square of frames, float64 [C, F]."""
    padded = np.pad(block, ((0, 0), (0, -block.shape[1] % FRAME))).astype(np.float64)
    return np.square(padded).reshape(len(block), -1, FRAME).mean(axis=2)
