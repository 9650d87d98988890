"""LJSpeech: metadata.csv without a header, lines of name|text|normalized text, and wavs/<name>.wav."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.inputs.kinds import is_audio
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
        audio = {PurePosixPath(name).stem: name for name in pile.audio if name.startswith(below)}
        if not lines or not all("|" in line for line in lines[:10]) or lines[0].split("|")[0] == "file_name":
            continue
        if not any(PurePosixPath(line.split("|")[0]).name.removesuffix(".wav") in audio for line in lines[:10]):
            continue
        pile.take([table])
        for number, line in enumerate(pile.text(table).split("\n"), start=1):
            if not line.strip():
                continue
            name, *texts = line.split("|")
            texts = [text.strip() for text in texts if text.strip()]
            stem = PurePosixPath(name.strip()).name
            stem = PurePosixPath(stem).stem if is_audio(stem) else stem
            found = audio.get(stem)
            if found is None:
                pile.notes.without_audio.append(f"{table}: {name}")
                message = f"{table}, line {number} describes it, but there is no such audio file"
                yield Rejection(audio=f"{below}{name}", reason=Reason.audio_missing, message=message)
            elif not texts:
                message = f"{table}, line {number}: has no text"
                pile.take([found])
                yield Rejection(audio=found, reason=Reason.bad_annotation, message=message)
            else:
                pile.take([found])
                turn = GivenTurn(0, "0", 0.0, None, texts[-1], speaker_id=0)
                yield Entry(audio=found, locator=Locator(pile.path(found)), id=found, turns=[turn])
