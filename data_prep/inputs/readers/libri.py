"""LibriSpeech (<speaker>-<chapter>.trans.txt for a chapter) and LibriTTS (<name>.normalized.txt for each file)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.inputs.kinds import is_audio
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator, Rejection


def read_librispeech(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each line of a .trans.txt. Speakers, the first part of a name, are the groups."""
    tables = pile.named(".trans.txt")
    in_folder = pile.by_folder() if tables else {}
    for table in tables:
        folder = table.rpartition("/")[0]
        audio = {PurePosixPath(name).stem: name for name in in_folder[folder] if is_audio(name)}
        rows = [line.strip().partition(" ") for line in pile.text(table).split("\n") if line.strip()]
        if not audio.keys() & {name for name, _, _ in rows}:
            continue
        pile.take([table])
        for name, _, text in rows:
            if name in audio:
                yield _entry(pile, audio[name], text)
            else:
                pile.notes.without_audio.append(f"{table}: {name}")
                message = f"{table} describes it, but there is no audio file of that name"
                yield Rejection(audio=f"{folder}/{name}", reason=Reason.audio_missing, message=message)


def read_libritts(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each audio file with a .normalized.txt or .original.txt; the normalized text is used."""
    audio = {name.rpartition(".")[0]: name for name in pile.audio}
    for stem in sorted({name.removesuffix(".normalized.txt") for name in pile.named(".normalized.txt")}):
        if stem not in audio:
            continue
        texts = [f"{stem}.normalized.txt", f"{stem}.original.txt"]
        pile.take([text for text in texts if text in pile.left])
        pile.take([audio[stem]])
        try:
            yield _entry(pile, audio[stem], pile.text(texts[0]))
        except ValueError as error:
            yield Rejection(audio=audio[stem], reason=Reason.bad_annotation, message=str(error))


def _entry(pile: Pile, name: str, text: str) -> Entry:
    pile.take([name])
    speaker = PurePosixPath(name).name.partition("-")[0].partition("_")[0]
    turns = [GivenTurn(0, speaker, 0.0, None, " ".join(text.split()))]
    return Entry(audio=name, locator=Locator(pile.path(name)), id=name, default_group=speaker, turns=turns)
