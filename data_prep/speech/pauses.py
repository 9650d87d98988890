"""Pauses within speech, at which speakers take turns: shorter than those at which detected speech is divided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

import numpy as np

from data_prep.records import MODEL_RATE, Span
from data_prep.speech.edges import quietest

PAUSE_SECONDS = 0.1
"""Shortest pause between two speakers: what is quiet for a shorter time may be a stop consonant."""
QUIET_DB = 30.0
"""Power of a pause below that of loud speech around it. In louder noise no pause is found."""
FRAME_SECONDS = 0.02
SHORTEST_PART = 0.4
"""Speech is not divided into shorter parts, in seconds."""
CHANGE_SECONDS = 0.4
"""Accuracy of changes of speaker in the middle of speech, from windows of 1 s."""

Read = Callable[[float, float], np.ndarray]
"""Gives the samples, float32 [N] at 16 kHz, from start to end seconds."""


def between_pauses(read: Read, span: Span) -> list[Span]:
    """Speech divided in the middle of its pauses."""
    samples = read(span.start, span.end).astype(np.float64)
    frame = round(FRAME_SECONDS * MODEL_RATE)
    power = np.square(samples[: len(samples) // frame * frame]).reshape(-1, frame).mean(axis=1)
    edges = [span.start]
    at = 0
    for is_quiet, run in groupby(power < np.quantile(power, 0.95) * 10 ** (-QUIET_DB / 10) if len(power) else []):
        count = len(list(run))
        middle = span.start + (at + count / 2) * FRAME_SECONDS
        long = count * FRAME_SECONDS >= PAUSE_SECONDS - 1e-9
        if is_quiet and long and min(middle - edges[-1], span.end - middle) >= SHORTEST_PART:
            edges.append(middle)
        at += count
    return [Span(start, end) for start, end in pairwise([*edges, span.end])]


def changes_in_pauses(
    spans: Sequence[tuple[float, float, int]], read: Read, known: frozenset[float]
) -> list[tuple[float, float, int]]:
    """Spans (start, end, speaker) by start, with changes of speaker in the middle of speech moved into a pause nearby.

    No further than `CHANGE_SECONDS`, and at most into half of a span. known: times that are in pauses already.
    """
    edges = [(start, end) for start, end, _ in spans]
    for index, ((start, change, _), (change_again, end, _)) in enumerate(pairwise(spans)):
        if change == change_again and change not in known:
            first = change - min(CHANGE_SECONDS, (change - start) / 2)
            last = change + min(CHANGE_SECONDS, (end - change) / 2)
            moved = first + quietest(read(first, last), PAUSE_SECONDS)
            edges[index], edges[index + 1] = (edges[index][0], moved), (moved, edges[index + 1][1])
    return [(start, end, who) for (start, end), (_, _, who) in zip(edges, spans, strict=True)]
