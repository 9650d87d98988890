"""Splits that the names of files and folders give: train/, validation-00000-of-00002.parquet, dev-clean/, test.tsv."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from data_prep.inputs.notes import Notes

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


def split_called(value: str) -> str:
    """The split "train", "val" or "test" that data call so: "validation", "dev", "train-clean-100", "Test".

    Raises ValueError for another word, since nobody knows whether it may be trained on.
    """
    match = _PART.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"'split' must be one of train, validation, test, got {value!r}")
    return _WORDS[match[1].lower()]


def given_splits(names: Iterable[str]) -> Callable[[str], str | None]:
    """A function from a name to its split, for files that are divided by their names.

    A single split among all names says nothing (a folder that happens to be called "test"), so then there is none.
    """
    found = {split_named(name) for name in names} - {None}
    return split_named if len(found) > 1 else lambda name: None


class LoneSplit:
    """Recordings whose path names a split, though no other path names another, so that it does not count."""

    def __init__(self) -> None:
        self._named: dict[str, list[str]] = {}
        self._others = 0

    def add(self, name: str, split: str | None, named: str | None) -> None:
        """split: which is used; named: which the path names"""
        if split is None and named is not None:
            self._named.setdefault(named, []).append(name)
        else:
            self._others += 1

    def tell(self, notes: Notes) -> None:
        """Adds a note; where the path names a split for held-out data beside others, that is a loss."""
        for split, names in self._named.items():
            if split == "train" and not self._others:
                continue
            note = notes.not_used if self._others and split != "train" else notes.remark
            for name in names:
                note(
                    f"recordings with the split {split!r} in their path, which is not used, as no path has another",
                    name,
                )
