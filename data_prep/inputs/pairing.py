"""Pairs of audio and side files whose names differ by more than the suffix, where only one pair is possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath


def pair_by_name(audio: list[str], sides: Iterable[str]) -> dict[str, str]:
    """Audio file -> the stem (path without suffix) of its side files.

    In this order: the same path; the key of a WebDataset sample, which ends at the first dot (000.audio.flac and
    000.json); and the same name in another folder (wav/a.wav, txt/a.txt), if no other file has this name, and the
    folders hold nothing but audio and nothing but texts (otherwise the text is of an audio file missing there).
    """
    stems = set(sides)
    paired = {name: stem for name in audio if (stem := str(PurePosixPath(name).with_suffix(""))) in stems}
    _pair(paired, {name: _key(name) for name in audio if name not in paired}, {stem: _key(stem) for stem in stems})
    of_audio, of_sides = {_folder(name) for name in audio}, {_folder(stem) for stem in stems}
    _pair(
        paired,
        {name: PurePosixPath(name).stem for name in audio if name not in paired and _folder(name) not in of_sides},
        {stem: PurePosixPath(stem).name for stem in stems if _folder(stem) not in of_audio},
    )
    return paired


def _pair(paired: dict[str, str], audio: dict[str, str], sides: dict[str, str]) -> None:
    """Adds the pairs of equal keys, each of which only one audio file and one side file has. Name -> key."""
    taken = set(paired.values())
    sides = {stem: key for stem, key in sides.items() if stem not in taken}
    counts, side_counts = Counter(audio.values()), Counter(sides.values())
    stem_of = {key: stem for stem, key in sides.items()}
    for name, key in audio.items():
        if counts[key] == 1 and side_counts[key] == 1:
            paired[name] = stem_of[key]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"
