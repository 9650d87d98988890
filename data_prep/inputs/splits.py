"""Splits that the names of files and folders give: train/, validation-00000-of-00002.parquet, dev-clean/, test.tsv."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

TEST = "test"
"""A split that nothing is trained on or validated with; its recordings are left out, with a reason."""

_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "eval": TEST,
    "test": TEST,
    "testing": TEST,
}
_PART = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:[-_.\s\d].*)?", re.IGNORECASE)
_TABLES = (".parquet", ".tar", ".tsv", ".csv", ".jsonl", ".json", ".gz", ".arrow")


def split_named(name: str) -> str | None:
    """The split "train", "val" or "test" that a path names: a word of its table's name, or its deepest such folder."""
    path = PurePosixPath(name)
    if path.suffix.lower() in _TABLES:
        words = [_WORDS[word] for word in re.split(r"[-_.\s\d]+", path.name.lower()) if word in _WORDS]
        if words:
            return words[0]
    for part in reversed(path.parts[:-1]):
        match = _PART.fullmatch(part)
        if match:
            return _WORDS[match[1].lower()]
    return None


def given_splits(names: Iterable[str]) -> Callable[[str], str | None]:
    """A function from a name to its split, for files that are divided by their names.

    A single split among all names says nothing (a folder that happens to be called "test"), so then there is none.
    """
    found = {split_named(name) for name in names} - {None}
    return split_named if len(found) > 1 else lambda name: None
