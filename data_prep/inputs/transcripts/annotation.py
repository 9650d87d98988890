"""The annotation of one recording, as a transcript gives it."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.records import GivenTurn


@dataclass
class Annotation:
    """All that a transcript says of its recording."""

    turns: list[GivenTurn] | None  # None: nothing is annotated
    group: str | None = None
    split: str | None = None
    speaker: str | None = None  # who speaks in all of it: the group, if there is no other
    lang: str | None = None
    dnsmos: float | None = None  # quality as the data's makers measured it
    remark: str | None = None  # a limitation that the user should know
    unused: str | None = None  # what of the transcript is not used
    sides: bool = False  # its speakers, A and B, are the sides of a call: the channels, if there are two
