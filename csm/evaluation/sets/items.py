"""The sentences of both tests, which are part of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csm.evaluation.sets.variants import CONSISTENCY, HOMOGRAPH, Variants
from csm.files import read_json_lines

VERSION = 1
"""Of sentences, labels and variants together; part of a report's protocol."""


@dataclass(frozen=True)
class Target:
    """The word of a sentence that is tested, and the variant, or sense, in which it should be said."""

    word: str
    variant: str

    @property
    def variants(self) -> Variants:
        """All of the word's, the first one first."""
        return (HOMOGRAPH | CONSISTENCY)[self.word]


@dataclass(frozen=True)
class HomographItem:
    """A sentence, in which `word` occurs once and can only be meant in the sense `sense` of `variants.HOMOGRAPH`."""

    id: str
    word: str
    sense: str
    text: str


@dataclass(frozen=True)
class ConsistencyItem:
    """A conversation of one speaker: `context` is heard with `word` in the variant `variant`, then `text` is to follow.

    The context's audio has to come from a recording, or from a system that speaks given phonemes, and is used only if
    the recognizer hears the variant in it with a margin.
    """

    id: str
    word: str
    variant: str
    context: str
    text: str


def homograph_items() -> list[HomographItem]:
    """All 200, grouped by word and sense."""
    return [HomographItem(**record) for _, record in read_json_lines(Path(__file__).with_name("homograph.jsonl"))]


def consistency_items() -> list[ConsistencyItem]:
    """All 200: each pair of sentences once for each variant of its word."""
    items = []
    for _, record in read_json_lines(Path(__file__).with_name("consistency.jsonl")):
        for variant in CONSISTENCY[record["word"]]:
            fields = record | {"id": f"{record['id']}-{variant}", "variant": variant}
            items.append(ConsistencyItem(**fields))
    return items
