"""VCTK: txt/p225/p225_001.txt for wav48/p225/p225_001.wav, or for wav48_silence_trimmed/p225/p225_001_mic1.flac."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator, Rejection

_AUDIO = re.compile(r"(?:.*/)?wav48[^/]*/([ps]\d+)/(\1_\d+)(_mic[12])?\.\w+")
_TEXT = re.compile(r"(?:.*/)?txt/([ps]\d+)/(\1_\d+)\.txt")


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each sentence, the speaker is the group. Of two microphones, the first is read."""
    texts = {match[2]: name for name in pile.left if (match := _TEXT.fullmatch(name))}
    audio: dict[str, list[str]] = {}
    for name in pile.audio:
        match = _AUDIO.fullmatch(name)
        if match:
            audio.setdefault(match[2], []).append(name)
    if not texts or not audio:
        return
    for sentence in sorted(audio.keys() | texts.keys()):
        names = sorted(audio.get(sentence, []))
        text = texts.get(sentence)
        pile.take([*names, *([text] if text else [])])
        if not names:
            assert text is not None
            pile.notes.without_audio.append(text)
            message = f"{text} describes it, but there is no audio file of that name"
            yield Rejection(audio=sentence, reason=Reason.audio_missing, message=message)
            continue
        pile.notes.put_aside(names[1:], "second microphone of VCTK")
        speaker = PurePosixPath(names[0]).parent.name
        try:
            said = " ".join(pile.text(text).split()) if text else None
        except ValueError as error:
            yield Rejection(audio=names[0], reason=Reason.bad_annotation, message=str(error))
            continue
        turns = [GivenTurn(0, speaker, 0.0, None, said)]
        yield Entry(
            audio=names[0], locator=Locator(pile.path(names[0])), id=names[0], default_group=speaker, turns=turns
        )
