"""LJSpeech: metadata.csv without a header, lines of name|text|normalized text, and wavs/<name>.wav."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from data_prep.inputs.kinds import AUDIO_SUFFIXES, is_audio, suffix_of
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator, Rejection


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each line, all of one speaker, with the normalized text if there is one."""
    for table in [name for name in pile.left if name.lower().endswith(("metadata.csv", "metadata.txt"))]:
        lines = [line for line in pile.head(table).split("\n") if line.strip()]
        folder = table.rpartition("/")[0]
        below = f"{folder}/" if folder else ""
        if not lines or not all("|" in line for line in lines[:10]) or lines[0].split("|")[0] == "file_name":
            continue
        audio = _by_ending(name for name in pile.audio if name.startswith(below))
        if not any(_find(audio, line.split("|")[0]) for line in lines[:10]):
            continue
        pile.take([table])
        for number, line in enumerate(pile.text(table).split("\n"), start=1):
            if not line.strip():
                continue
            name, *texts = line.split("|")
            texts = [text.strip() for text in texts if text.strip()]
            found = _find(audio, name)
            if len(found) != 1:
                pile.notes.without_audio.append(f"{table}: {name}")
                problem = f"{' and '.join(found[:2])} have this name" if found else "there is no such audio file"
                message = f"{table}, line {number} describes it, but {problem}"
                yield Rejection(audio=f"{below}{name}", reason=Reason.audio_missing, message=message)
                continue
            pile.take(found)
            if not texts:
                message = f"{table}, line {number}: has no text"
                yield Rejection(audio=found[0], reason=Reason.bad_annotation, message=message)
            else:
                turn = GivenTurn(0, "0", 0.0, None, texts[-1], speaker_id=0)
                yield Entry(audio=found[0], locator=Locator(pile.path(found[0])), id=found[0], turns=[turn])


def _by_ending(names: Iterable[str]) -> dict[str, list[str]]:
    """Last one, two, ... parts of the paths of audio files, without suffix -> their names.

    Of files that differ by the suffix alone, the one without loss.
    """
    of_stem: dict[str, str] = {}
    for name in sorted(names, key=lambda name: AUDIO_SUFFIXES.index(suffix_of(name))):
        of_stem.setdefault(name.rpartition(".")[0], name)
    endings: dict[str, list[str]] = {}
    for stem, name in sorted(of_stem.items()):
        parts = stem.split("/")
        for first in range(len(parts)):
            endings.setdefault("/".join(parts[first:]), []).append(name)
    return endings


def _find(audio: dict[str, list[str]], name: str) -> list[str]:
    """The audio files that a line may mean by `name`: those whose paths agree with most of it."""
    name = name.strip()
    parts = PurePosixPath(name.rpartition(".")[0] if is_audio(name) else name).parts
    return next((found for first in range(len(parts)) if (found := audio.get("/".join(parts[first:])))), [])
