"""What each form of input gives: entries, good and bad."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator


@dataclass
class Entry:
    """A recording as a source lists it."""

    audio: str  # path relative to the source; suffix as the file's
    locator: Locator
    id: str  # unique in the source
    group: str | None = None
    default_group: str | None = None  # if neither `group` nor the option group_pattern gives one
    split: str | None = None
    turns: list[GivenTurn] | None = None  # None: nothing is annotated


@dataclass
class BadEntry:
    """A recording that cannot be used, as the listing already shows."""

    audio: str
    reason: Reason
    message: str
