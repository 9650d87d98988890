"""Text files: the words of a whole recording, or lines that begin with times.

    0.5\t3.33\tSo what               Audacity's labels
    0.50 3.33 A: so what             Fisher, whose A and B are the sides of a call; any lines of start, end and text
    [00:00:01] A: so what            a start alone; the turn ends where the next one begins

A file that looks like anything of the sort but cannot be read is an error: times are never taken for words.
"""

from __future__ import annotations

import io
import re

from csm.languages import MARKS
from data_prep.inputs.transcripts.subtitles import ONE, speakers
from data_prep.inputs.transcripts.words import numbered
from data_prep.records import GivenTurn

_TIME = r"(?:\d+:)?\d+:\d{2}(?:[.,]\d+)?|\d+(?:[.,]\d+)?"
_SPAN = re.compile(rf"[\[(]?({_TIME})\s*(?:\s|-+>?|,|;|\u2013)\s*({_TIME})[\])]?:?(?:\s+(.*))?")
_START = re.compile(r"[\[(]?((?:\d+:)?\d+:\d{2}(?:[.,]\d+)?)[\])]?:?\s+(.+)")
_SIDE = re.compile(r"([AB])\d?")
_COMMENT = re.compile(r"#|;;|%")
_SUSPECT = re.compile(
    rf"\d[\d.,:]*[\s)\]\t]|[\[#<{{]|[\w{MARKS} .'-]{{1,20}}:\s"
)  # of a structure, at the start of a line


def parse_labels(text: str) -> list[GivenTurn]:
    """Turns of a text file. Raises ValueError for one that is empty, or has a structure that is not known."""
    lines = [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
    if not lines:
        raise ValueError("it is empty: write the text that is spoken, or remove it to have the recording transcribed")
    rows = [line for line in lines if not _COMMENT.match(line)]
    spans = [_SPAN.fullmatch(line) for line in rows]
    starts = [_START.fullmatch(line) for line in rows]
    if rows and all(spans) and (len(rows) > 1 or "\t" in text or (spans[0] is not None and "." in spans[0][1])):
        found = [(_seconds(match[1]), _seconds(match[2]), (match[3] or "").strip()) for match in spans if match]
        found = [row for row in found if row[2]]
        if not found:
            raise ValueError("its lines have times, but no text")
        if any(end < start for start, end, _ in found):
            raise ValueError("its lines begin with two numbers, but the second is not a later time")
        return _turns([(start, end, said) for start, end, said in found])
    if rows and all(starts) and len(rows) > 1:
        times = [_seconds(match[1]) for match in starts if match]
        ends: list[float | None] = [*times[1:], None]
        return _turns([(t, e, match[2]) for t, e, match in zip(times, ends, starts, strict=True) if match])
    odd = [line for line in lines if _SUSPECT.match(line)]
    if len(odd) >= 2 and 2 * len(odd) >= len(lines):
        raise ValueError(
            f"its lines have a structure that is not known, such as {odd[0][:40]!r}; a .txt holds the spoken text, "
            "or lines of start, end and text"
        )
    return [GivenTurn(0, ONE, 0.0, None, " ".join(text.split()), speaker_id=0)]


def side_of(speaker: str) -> int | None:
    """The channel of a speaker who is named as the side of a call: 0 for A, A1, A2, ..., 1 for B; None for others."""
    match = _SIDE.fullmatch(speaker)
    return "AB".index(match[1]) if match else None


def of_sides(turns: list[GivenTurn]) -> bool:
    """Whether turns with start and end are of the sides A and B of a call, and of nobody else."""
    return {None if turn.end is None else side_of(turn.speaker) for turn in turns} == {0, 1}


def _turns(rows: list[tuple[float, float | None, str]]) -> list[GivenTurn]:
    said = speakers([text for _, _, text in rows])
    return numbered([GivenTurn(0, who, s, e, what) for (s, e, _), (who, what) in zip(rows, said, strict=True)])


def _seconds(text: str) -> float:
    seconds = 0.0
    for part in text.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
