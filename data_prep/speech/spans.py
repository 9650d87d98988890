"""Stretches of time, as sets."""

from __future__ import annotations

from collections.abc import Iterable

from data_prep.records import Span


def united(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans by start, apart from each other."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and span.start <= found[-1].end:
            found[-1].end = max(found[-1].end, span.end)
        else:
            found.append(Span(span.start, span.end))
    return found
