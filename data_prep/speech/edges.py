"""Start and end times of turns from their words: with a little silence around, and never inside a word."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from data_prep.audio.recording import RecordingAudio
from data_prep.config import TurnsConfig
from data_prep.records import MODEL_RATE, Span, TrackSpeech
from data_prep.speech.grouping import Group, end_of, start_of
from data_prep.speech.words import SpokenWord

SEARCH_SECONDS = 0.2
"""Accuracy of word times. In the middle of speech, a turn is cut at the quietest moment within this distance."""
QUIET_FRAME_SECONDS = 0.03
SILENT_DB = -40.0
"""Power of the background relative to the loudest 30 ms of a turn, at most, where the background is not louder."""
NOISY_DB = -20.0
"""The same for any background: speech itself is weaker than that at the ends of words."""
BACKGROUND = 0.1, 6.0
"""Quantile of the power of a turn's frames that is its background's, and dB above which a sound stands out of it."""


class Edges:
    """Sets the times of one track's turns."""

    def __init__(
        self, audio: RecordingAudio, track: TrackSpeech, seconds: float, vad_pad_seconds: float, cfg: TurnsConfig
    ) -> None:
        self.audio, self.channel, self.spans, self.seconds = audio, track.channel, track.spans, seconds
        self.starts = [span.start for span in track.spans]
        # spans of speech have a margin of silence already
        self.before = max(0.0, cfg.pad_start_seconds - vad_pad_seconds)
        self.after = max(0.0, cfg.pad_end_seconds - vad_pad_seconds)

    def around(self, groups: Sequence[Group]) -> list[tuple[float, float]]:
        """(start, end) of each of the track's groups, which are sorted and do not overlap; nor do the results."""
        times = [[start_of(group), end_of(group)] for group in groups]
        for i in range(len(groups) + 1):
            left = groups[i - 1] if i > 0 else None
            right = groups[i] if i < len(groups) else None
            end, start = self._between(left, right)
            if left:
                times[i - 1][1] = end
            if right:
                times[i][0] = start
        return [(round(max(0.0, start), 3), round(min(end, self.seconds), 3)) for start, end in times]

    def _between(self, left: Group | None, right: Group | None) -> tuple[float, float]:
        """End of the left and start of the right one of two neighbors."""
        last = end_of(left) if left else 0.0
        first = start_of(right) if right else self.seconds
        if left and right and first - last <= 2 * SEARCH_SECONDS and self._span_of(last) is self._span_of(first):
            # there is no silence between them: they share an edge
            edge = self._quietest(last - _reach(left[-1]), first + _reach(right[0]))
            return edge, edge
        end, start = last, first
        if left:
            span = self._span_of(last)
            speaking = span is not None and last < span.end
            end = self._quietest(last - _reach(left[-1]), last + SEARCH_SECONDS) if speaking else last + self.after
        if right:
            span = self._span_of(first)
            speaking = span is not None and first > span.start
            start = first - self.before
            if speaking:
                start = self._quietest(first - SEARCH_SECONDS, first + _reach(right[0]))
        if left and right and end > start:
            end = start = last + (first - last) * self.after / (self.after + self.before)
        return end, start

    def _quietest(self, start: float, end: float) -> float:
        return quietest_moment(self.audio, self.channel, max(0.0, start), min(end, self.seconds))

    def _span_of(self, time: float) -> Span | None:
        """The span of speech that holds a time, ends included."""
        index = bisect_right(self.starts, time) - 1
        return self.spans[index] if index >= 0 and time <= self.spans[index].end else None


def _reach(spoken: SpokenWord) -> float:
    """How far an edge may move into a word: by half of it at most."""
    return min(SEARCH_SECONDS, (spoken.word.end - spoken.word.start) / 2)


def quietest_moment(audio: RecordingAudio, channel: int | None, start: float, end: float) -> float:
    """Middle of the quietest 30 ms between two times in seconds; the first if several are."""
    return start + quietest(audio.track(channel, MODEL_RATE, start, end), QUIET_FRAME_SECONDS)


def quietest(samples: np.ndarray, frame_seconds: float) -> float:
    """Middle of the quietest frame of `samples` ([N], 16 kHz) in seconds from their start; the first if several are."""
    frame = round(frame_seconds * MODEL_RATE)
    if len(samples) <= frame:
        return len(samples) / 2 / MODEL_RATE
    power = np.convolve(np.square(samples.astype(np.float64)), np.ones(frame), "valid")
    return (int(power.argmin()) + frame / 2) / MODEL_RATE


def end_of_sound(audio: RecordingAudio, channel: int | None, start: float, end: float) -> float:
    """End of the last 30 ms of sound between two times in seconds; `end` if all is silence.

    Sound is what is within 40 dB of the loudest 30 ms and stands out of the background, or is within 20 dB.
    """
    samples = audio.track(channel, MODEL_RATE, start, end).astype(np.float64)
    frame = round(QUIET_FRAME_SECONDS * MODEL_RATE)
    power = np.square(samples[: len(samples) // frame * frame]).reshape(-1, frame).mean(axis=1)
    if not power.any():
        return end
    quantile, above = BACKGROUND
    background = float(np.quantile(power, quantile)) * 10 ** (above / 10)
    least, most = (10 ** (db / 10) * power.max() for db in (SILENT_DB, NOISY_DB))
    last = int(np.flatnonzero(power >= min(max(background, least), most))[-1])
    return min(end, start + (last + 1) * frame / MODEL_RATE)
