"""Clips for recognition that hold one speaker each, where several speak on one track, one at a time.

A recognizer that hears several voices in turn leaves whole answers out, above all quiet ones, and puts its words up to
0.3 s off, which at a change of speaker is another speaker's turn. So each speaker's stretches are put together with
pauses between, as many as fit into a clip: there are hardly more clips than before. A word belongs to the stretch in
which it is heard, whatever its exact time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from csm.judges.recognition import MAX_CLIP_SECONDS
from data_prep.records import MODEL_RATE, Span, SpeakerSpan, Word

PAUSE_SECONDS = 0.5
"""Silence between two stretches in a clip."""

UTTERANCE_SECONDS = 1.0
"""Speech of this length between two pauses has words; shorter sounds may be none, or have theirs put beside them."""


@dataclass
class Joined:
    """Stretches of one speaker that are recognized together, by start."""

    parts: list[Span]

    @property
    def seconds(self) -> float:
        return sum(part.end - part.start for part in self.parts) + PAUSE_SECONDS * (len(self.parts) - 1)

    def samples(self, read: Callable[[Span], np.ndarray]) -> np.ndarray:
        """float32 [N] at 16 kHz: the stretches, with pauses between. read: gives a stretch so."""
        pause = np.zeros(round(PAUSE_SECONDS * MODEL_RATE), np.float32)
        pieces = [piece for part in self.parts for piece in (pause, read(part))]
        return np.concatenate(pieces[1:])[: int(MAX_CLIP_SECONDS * MODEL_RATE)]  # rounding may add a sample

    def halves(self, quietest: Callable[[float, float], float]) -> list[Joined]:
        """Two clips of half the stretches each, or of a single one cut at the quietest moment of its middle half."""
        if len(self.parts) > 1:
            middle = len(self.parts) // 2
            return [Joined(self.parts[:middle]), Joined(self.parts[middle:])]
        (part,) = self.parts
        quarter = (part.end - part.start) / 4
        cut = quietest(part.start + quarter, part.end - quarter)
        return [Joined([Span(part.start, cut)]), Joined([Span(cut, part.end)])]

    def without_gaps(self, words: Sequence[Word], speech: Sequence[Span] | None) -> list[Joined]:
        """Clips of the same speech, divided before and after each utterance that has got no word; else this clip.

        Recognizers skip utterances that follow a pause, or another one that they could not make out, but mostly hear
        them where nothing else is in the clip.

        Args:
            words: recognized, with times in the clip.
            speech: spans of speech of the track, by start, which divide a single stretch into utterances; None: it is
                one.
        """
        utterances = self.parts
        if len(self.parts) == 1 and speech is not None:
            (part,) = self.parts
            utterances = [
                Span(max(span.start, part.start), min(span.end, part.end))
                for span in speech
                if span.start < part.end and span.end > part.start
            ]
        if len(utterances) < 2:
            return [self]
        counts = [0] * len(utterances)
        for word in (word for placed in self.placed(words) for word in placed):
            middle = (word.start + word.end) / 2
            distance = [max(span.start - middle, middle - span.end) for span in utterances]
            counts[distance.index(min(distance))] += 1
        groups: list[list[Span]] = []
        after_gap = True
        for span, count in zip(utterances, counts, strict=True):
            gap = count == 0 and span.end - span.start >= UTTERANCE_SECONDS
            if gap or after_gap:
                groups.append([])
            groups[-1].append(span)
            after_gap = gap
        if len(groups) < 2:
            return [self]
        whole = len(self.parts) == 1  # utterances are heard with the pauses between them, as before
        return [Joined([Span(group[0].start, group[-1].end)] if whole else group) for group in groups]

    def placed(self, words: Sequence[Word]) -> list[list[Word]]:
        """The words of each stretch, given by time in the clip, with their times in the recording.

        A word is in the stretch that holds its middle, or else follows or precedes it most closely.
        """
        starts = [0.0]
        for part in self.parts[:-1]:
            starts.append(starts[-1] + part.end - part.start + PAUSE_SECONDS)
        found: list[list[Word]] = [[] for _ in self.parts]
        for word in words:
            middle = (word.start + word.end) / 2
            # stretches are divided in the middle of the pauses
            index = max(0, bisect_right(starts, middle + PAUSE_SECONDS / 2) - 1)
            part, shift = self.parts[index], self.parts[index].start - starts[index]
            start = min(max(word.start + shift, part.start), part.end)
            end = min(max(word.end + shift, start), part.end)
            found[index].append(replace(word, start=round(start, 3), end=round(end, 3)))
        return found


def joined(spans: Sequence[SpeakerSpan], limit: float, quietest: Callable[[float, float], float]) -> list[Joined]:
    """Clips of at most `limit` seconds that hold all of `spans` (of one track, by start, disjoint).

    Args:
        quietest: gives the quietest moment between two times, where longer spans are cut.
    """
    clips: list[Joined] = []
    of_speaker: dict[str, Joined] = {}  # the clip to which more may be added
    for span in spans:
        for part in _cut(span, limit, quietest):
            clip = of_speaker.get(span.speaker)
            if clip is None or clip.seconds + PAUSE_SECONDS + part.end - part.start > limit:
                clip = of_speaker[span.speaker] = Joined([])
                clips.append(clip)
            clip.parts.append(part)
    return clips


def _cut(span: SpeakerSpan, limit: float, quietest: Callable[[float, float], float]) -> list[Span]:
    parts, start = [], span.start
    while span.end - start > limit:
        cut = quietest(start + limit / 2, start + limit)
        parts.append(Span(start, cut))
        start = cut
    return [*parts, Span(start, span.end)]
