"""CHAT's .cha (TalkBank: CHILDES, CallHome, ...): a main line for each utterance, with its time in a bullet.

    @Languages:  eng
    @Media:      0638, audio
    *MOT:        <where did> [//] where are you &-uh going ? \\x151240_3105\\x15
    %mor:        ...

Dependent lines (%) and headers (@) are not text. https://talkbank.org/0info/manuals/CHAT.html
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from data_prep.inputs.transcripts.annotation import Annotation
from data_prep.inputs.transcripts.chat_text import interposed, spoken_text
from data_prep.inputs.transcripts.json_text import language
from data_prep.inputs.transcripts.words import numbered
from data_prep.records import GivenTurn

_BULLET = re.compile(r'\x15(?:%snd:"[^"]*"_?)?(\d+)_(\d+)-?\x15')  # milliseconds; older files name the media in it
_MAIN = re.compile(r"\*([^\s:]+):\s*(.*)", re.DOTALL)
_UNTIMED = "lines without a time, which are left out by name"


def parse_chat(text: str, stem: str | None = None) -> dict[str, Annotation]:
    """The annotation of the recording that the file names as its media, or else `stem`.

    A line of which a part was not understood (xxx, yyy, www) has no text, so that it is transcribed. One without a time
    has no length at the end of the line before: it is rejected by name and ends the conversation. Nor has a word of
    another speaker within a line (&*MOT:mhm), of which only the line is known: inside a kept turn it becomes an event.
    Lines in which nothing is said are no turns. Raises ValueError if it is no such file, or has no times.
    """
    media, lang = stem or "", None
    turns: list[GivenTurn] = []
    lines, untimed, last = 0, 0, 0.0
    for number, line in _lines(text):
        if line.startswith("@Media:"):
            media = line.removeprefix("@Media:").split(",")[0].strip().strip('"') or media
        elif line.startswith("@Languages:"):
            lang = language({"language": line.removeprefix("@Languages:").split(",")[0].strip()})
        if not line.startswith("*"):
            continue
        main = _MAIN.fullmatch(line)
        if main is None:
            raise ValueError(f"line {number}: expected *SPEAKER: and what is said, got {line[:40]!r}")
        try:
            spoken = _BULLET.sub(" ", main[2])
            said, understood = spoken_text(spoken)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        times = [(int(start) / 1000, int(end) / 1000) for start, end in _BULLET.findall(main[2])]
        start, end = (times[0][0], times[-1][1]) if times else (last, last)
        if said or not understood:
            lines, untimed = lines + 1, untimed + (not times)
            turns.append(GivenTurn(0, main[1], start, end, said if understood else None))
        for who, words, share in interposed(spoken):
            moment = round(start + share * (end - start), 3)
            turns.append(GivenTurn(0, who, moment, moment, words))
        last = max(last, end)
    if not lines:
        raise ValueError("holds no lines of speech (*SPEAKER: ...)")
    if untimed == lines:
        raise ValueError(
            "its lines have no times (bullets); align it with the audio, or give the recording another text"
        )
    return {media: Annotation(numbered(turns), lang=lang, unused=_UNTIMED if untimed else None)}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with the lines that continue it."""
    first, parts = 0, list[str]()
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        if line[0] in "\t " and parts:
            parts.append(line.strip())
            continue
        if line[0] not in "@*%":
            raise ValueError(
                f"line {number}: not CHAT; expected @, *, % or a tab at its start, got {line[:40].strip()!r}"
            )
        if parts:
            yield first, " ".join(parts)
        first, parts = number, [line.strip()]
    if parts:
        yield first, " ".join(parts)
