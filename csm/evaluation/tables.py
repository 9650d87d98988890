"""Tables of text that a report shows beside its headline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Value = Mapping[str, Any]
"""An Estimate as plain values."""


@dataclass(frozen=True)
class ScoreTable:
    """A table as text. long: shown only when asked for."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    long: bool = False


def with_interval(value: Value, scale: float = 1) -> str:
    """A number with its interval, if it has one: three digits, or one of a scaled number such as a percentage."""
    digits = 3 if scale == 1 else 1
    text = f"{scale * value['value']:.{digits}f}"
    if value["low"] is None:
        return text
    return f"{text} [{scale * value['low']:.{digits}f}, {scale * value['high']:.{digits}f}]"
