"""Text files: the words of a whole recording, or lines with times.

    0.5\t3.33\tSo what               Audacity's labels
    0.50 3.33 A: so what             Fisher, whose A and B are the sides of a call; any lines of start, end and text
    [00:00:01] A: so what            a start alone; the turn ends where the next one begins
    0:01                             a start above the text (YouTube), or a name and a start (Otter, Rev)
    00:00:01,000 --> 00:00:03,330    subtitles, whatever the file is called

Lines without a time go on with the one above. A file that looks like anything of the sort but cannot be read is an
error: times are never taken for words.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from itertools import pairwise

from csm.languages import MARKS
from data_prep.inputs.transcripts.subtitles import ONE, named_line, parse_subtitles, speakers
from data_prep.inputs.transcripts.times import Mark, is_name, mark_of, span_of
from data_prep.inputs.transcripts.words import numbered
from data_prep.records import GivenTurn

_CUE = re.compile(r"[\d:.,]+\s*-+>\s*[\d:.,]+(?:\s+\w+:\S+)*")  # alone in its line
_BLANKS = re.compile(r"\s{2,}")
_SIDE = re.compile(r"([AB])\d?")
_COMMENT = re.compile(r"[#%](?:\s|$)|;;")
_ENDS = ".?!:\u3002\uff1f\uff01\uff1a"  # of sentences, and of what announces something
_LABEL = re.compile(r"([A-Z]\d?|(?i:speaker|spk)[ _-]?\w{1,3})\s*:\s+(\S.*)")  # no word that begins a sentence
_SUSPECT = re.compile(
    rf"\d[\d.,:]*[\s)\]\t]|[\[#<{{]|[\w{MARKS} .'-]{{1,20}}:\s"
)  # of a structure, at the start of a line


def parse_labels(text: str) -> list[GivenTurn]:
    """Turns of a text file. Raises ValueError for one that is empty, or has a structure that is not known."""
    lines = [_BLANKS.sub(_gap, line.strip()) for line in io.StringIO(text, newline=None) if line.strip()]
    if not lines:
        raise ValueError("it is empty: write the text that is spoken, or remove it to have the recording transcribed")
    cues = [line for line in lines if _CUE.fullmatch(line)]
    if cues:
        try:
            return parse_subtitles(text, "srt" if "," in cues[0] else "vtt")
        except ValueError as error:
            raise ValueError(f"it looks like subtitles, but {error}") from error
    rows = [line for line in lines if not _COMMENT.match(line)]
    try:
        marks = [mark_of(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"it looks like lines with times, but {error}") from error
    spans = [span for row in rows if (span := span_of(row)) is not None]
    if rows and len(spans) == len(rows) and (len(rows) > 1 or "\t" in text or (marks[0] is not None and marks[0].sure)):
        return _turns([Mark(*span[:2], None, span[2], True) for span in spans])
    if any(marks) and _are_times(rows, marks):
        return _turns(_with_continuations(rows, marks))
    if len(rows) < len(lines):
        comment = next(line for line in lines if _COMMENT.match(line))
        raise ValueError(
            f"it has a comment, {comment[:40]!r}, beside a text without times; a .txt holds the spoken text"
        )
    return _plain(lines)


def _gap(blanks: re.Match[str]) -> str:
    """Several blanks as two, or as a tab, so that no line takes long to be matched."""
    return "\t" if "\t" in blanks[0] else "  "


def side_of(speaker: str) -> int | None:
    """The channel of a speaker who is named as the side of a call: 0 for A, A1, A2, ..., 1 for B; None for others."""
    match = _SIDE.fullmatch(speaker)
    return "AB".index(match[1]) if match else None


def of_sides(turns: list[GivenTurn]) -> bool:
    """Whether turns with start and end are of the sides A and B of a call, and of nobody else."""
    return {None if turn.end is None else side_of(turn.speaker) for turn in turns} == {0, 1}


def _are_times(rows: list[str], marks: list[Mark | None]) -> bool:
    """Whether marks are times, and not words at which a line happens to begin or end: "We meet at / 10:30 sharp".

    Several are times if one of them is sure, if all lines have one, or if half of them have nothing else but a name. A
    single one must stand in square brackets, in a line of its own, with a second time, or behind a name. Raises
    ValueError if the text begins with other marks, which nobody can tell from words.
    """
    found = [mark for mark in marks if mark is not None]
    place = next(place for place, mark in enumerate(marks) if mark is not None)
    first = found[0]
    if len(found) == 1 and first.lone:
        return True
    if len(found) > 1:
        headings = 2 * len(found) >= len(rows) and not any(mark.said for mark in found)
        if any(mark.sure for mark in found) or len(found) == len(rows) or headings:
            return True
    if first.sure and not first.said and place + 1 < len(rows):  # above a text, not within it
        return True
    if place > 0 and (not first.sure or rows[place - 1][-1] not in _ENDS):
        return False
    if len(rows) == 1 and first.speaker is not None and not first.sure:  # "John 3:16"
        return False
    raise ValueError(
        f"it has what may be a time or a word, {rows[place][:40]!r}; write [0:10:30] for when the speech begins, or "
        "the word in letters"
    )


def _with_continuations(rows: list[str], marks: list[Mark | None]) -> list[Mark]:
    """The marks, each with the lines that follow it up to the next one."""
    found = [mark for mark in marks if mark is not None]
    if marks[0] is None:
        row = next(row for row, mark in zip(rows, marks, strict=True) if mark is not None)
        raise ValueError(
            f"it has lines with times, such as {row[:40]!r}, but begins without; remove what is before them"
        )
    if any(later.start < mark.start for mark, later in pairwise(found)):
        raise ValueError("it has lines with times that are not in order; sort them")
    parts: list[list[str]] = []
    for row, mark in zip(rows, marks, strict=True):
        if mark is None:
            parts[-1].append(row)
        else:
            parts.append([mark.said] if mark.said else [])
    _take_names(found, parts)
    for mark, lines in zip(found, parts, strict=True):
        if sum(named_line(line) is not None for line in lines) > 1:
            raise ValueError(f"it has several speakers under one time, such as {lines[1][:40]!r}; give each its time")
        mark.said = " ".join(" ".join(lines).split())
    if len({mark.speaker is None for mark in found}) > 1:
        raise ValueError("it has lines of a name and a time beside lines of a time alone; give all times a name")
    return found


def _take_names(marks: list[Mark], parts: list[list[str]]) -> None:
    """Names behind the times and above the texts ("[00:03] Ann") become the speakers, if they recur."""
    pairs = list(zip(marks, parts, strict=True))
    if not all(is_name(mark.said) and len(lines) > 1 and not lines[1][0].islower() for mark, lines in pairs):
        return
    if 2 * len({mark.said for mark in marks}) > len(marks):  # such as "Yeah"
        raise ValueError(f"it may have names behind the times, such as {marks[0].said!r}; put a colon behind names")
    for mark, lines in pairs:
        mark.speaker = lines.pop(0)


def _turns(marks: list[Mark]) -> list[GivenTurn]:
    """Turns of the marks that have a text; one without an end lasts until a later one begins."""
    if any(mark.end is not None and mark.end < mark.start for mark in marks):
        raise ValueError("its lines begin with two numbers, but the second is not a later time")
    starts = sorted(mark.start for mark in marks)
    for mark in marks:
        later = bisect_right(starts, mark.start)
        if mark.end is None and later < len(starts):
            mark.end = starts[later]
    marks = [mark for mark in marks if mark.said]
    if not marks:
        raise ValueError("its lines have times, but no text")
    said = speakers([mark.said for mark in marks])
    if marks[0].speaker is not None:
        said = [(mark.speaker or ONE, mark.said) for mark in marks]
    return numbered([GivenTurn(0, who, m.start, m.end, what) for m, (who, what) in zip(marks, said, strict=True)])


def _plain(lines: list[str]) -> list[GivenTurn]:
    """The text of the whole recording, without the label of its only speaker."""
    odd = [line for line in lines if _SUSPECT.match(line)]
    labels = [_LABEL.fullmatch(line) for line in lines]
    names = list(dict.fromkeys(label[1] for label in labels if label))
    if len(names) == 1 and labels[0]:
        said = [label[2] if label else line for line, label in zip(lines, labels, strict=True)]
        return [GivenTurn(0, names[0], 0.0, None, " ".join(" ".join(said).split()))]
    if names or (len(odd) >= 2 and 2 * len(odd) >= len(lines)):
        example = next((label[0] for label in labels if label), odd[0])
        raise ValueError(
            f"its lines have a structure that is not known, such as {example[:40]!r}; a .txt holds the spoken text, "
            "or lines of start, end and text"
        )
    return [GivenTurn(0, ONE, 0.0, None, " ".join(" ".join(lines).split()), speaker_id=0)]
