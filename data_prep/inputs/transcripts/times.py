"""Times that mark the lines of a text file: [00:01] at a line's start, "Ann  0:03" or "Speaker 1 (00:03)" above a text.

A time of day within a sentence, or at its end ("We meet at 10:30"), is none. A line that ends in a time is marked if
the time is in brackets, begins with 0: or has seconds (1:02:03), or if nothing but a name stands before it. Nor are
numbers with commas between thousands (10,000) times, unless tabs separate them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CLOCK = r"\d{1,3}(?::\d{2}){1,3}(?:[.,]\d+)?(?![\d:])"
_TIME = rf"(?:{_CLOCK}|\d+(?:[.,]\d+)?)(?![.,]?\d)"
_JOINT = r"\s*(?:\s|-+>?|,|;|\u2013)\s*"
_SPAN = re.compile(rf"([\[(]?)({_TIME})[\])]?({_JOINT})[\[(]?({_TIME})[\])]?:?(?:\s+(.*))?")
_AT_START = re.compile(rf"([\[(<{{]?)\s*({_CLOCK})\s*([\])>}}]?)(.*)")
_AT_END = re.compile(rf"(.*?\S)(\s+[\[(<{{]?|[\[(<{{])\s*({_CLOCK})\s*([\])>}}]?)\s*:?")
_AFTER_NAME = re.compile(rf"([^\[(<{{]*?\S)\s*[\[(<{{]\s*({_CLOCK})\s*[\])>}}](.*)")
_IN_BRACKETS = re.compile(rf"\[\s*{_CLOCK}\s*\]")
_OF_DAY = re.compile(r"\s*(?:[ap]\.?\s?m\b|o.?clock\b|uhr\b|h\b)", re.IGNORECASE)
_TO_ANOTHER = re.compile(rf"\s*[a-zà-ÿ]+\s+{_CLOCK}")  # "12:00 to 13:00"
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")
_OFFSET = re.compile(r"0{1,2}:|\d+:\d+:")  # of a recording's times; a time of day is seldom written so
_SIGNS = " \t:-\u2013\u2014"
_COLUMNS = (",", ";", "|", "/")
_NAME_WORDS = 4
_NAME_SIGNS = 16  # of a name in a script without upper case
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # and kana
_IDEOGRAPHIC_NAME = 6
_OF_SENTENCES = set('?!;,"\u3002\uff0c\uff01\uff1f\uff1b\u3001\u0964\u060c\u061b\u061f')


@dataclass
class Mark:
    """A time that a line is marked with."""

    start: float
    end: float | None
    speaker: str | None  # whose name stands before the time
    said: str  # behind it, in the same line
    sure: bool  # it cannot be a time of day that begins a sentence
    lone: bool = True  # it counts even where no other line has a time


def span_of(line: str) -> tuple[float, float, str] | None:
    """Start, end and text of a line that begins with two times or numbers."""
    match = _span(line)
    return (seconds(match[2]), seconds(match[4]), (match[5] or "").strip()) if match else None


def mark_of(line: str) -> Mark | None:
    """The time at the start of a line, or at its end; None: there is none. Raises ValueError for one that is not read.

    Two numbers at the start count if they are written as times or with decimals.
    """
    span = _span(line)
    if span and _is_timed(span):
        clear = bool(span[1]) or ">" in span[3] or "\t" in line
        joined = "," in span[3] or ("-" in span[3] and ":" not in span[2])  # as numbers of a sentence are
        sure = clear or (not joined and (":" not in span[2] or bool(_OFFSET.match(span[2]))))
        return Mark(seconds(span[2]), seconds(span[4]), None, _without_times(span[5] or "", line), sure, sure)
    first = _AT_START.match(line)
    if first and not _is_of_day(first):
        opened, time, closed, rest = first.groups()
        if bool(opened) != bool(closed):
            raise ValueError(f"the line {line[:40]!r} has a structure that is not known; write start, end and text")
        sure = bool(opened) or bool(_OFFSET.match(time)) or not rest.strip(_SIGNS)
        return Mark(seconds(time), None, None, _without_times(rest.strip(_SIGNS), line), sure, opened == "[")
    named = _named(line)
    if named:
        said = _without_times(named[3].strip(_SIGNS), line)
        return Mark(seconds(named[2]), None, named[1].rstrip(_SIGNS), said, True)
    last = _AT_END.fullmatch(line)
    if last:
        before, gap, time, closed = last.groups()
        bracketed, name = bool(gap.strip() and closed), before.rstrip(f"{_SIGNS},|")
        if is_name(name):
            sure = bracketed or bool(_OFFSET.match(time)) or len(gap) > 1 or gap == "\t"
            return Mark(seconds(time), None, name, "", sure, sure)
        if bracketed or _OFFSET.match(time):
            raise ValueError(f"the line {line[:40]!r} ends in a time; put the time before the text")
    if _IN_BRACKETS.search(line):
        raise ValueError(f"the line {line[:40]!r} has a time within its text; begin a line with it")
    return None


def _span(line: str) -> re.Match[str] | None:
    """Two times or numbers at the start of a line."""
    match = _SPAN.fullmatch(line)
    thousands = match and "\t" not in line and any(_THOUSANDS.fullmatch(match[place]) for place in (2, 4))
    return None if thousands else match


def _is_timed(span: re.Match[str]) -> bool:
    """Whether both numbers are written as times or with decimals."""
    return all(set(":.,") & set(time) for time in (span[2], span[4]))


def _is_of_day(first: re.Match[str]) -> bool:
    """Whether words behind a time at the start of a line say that it is one of day."""
    opened, time, _, rest = first.groups()
    return not opened and bool(_OF_DAY.match(rest) or (not _OFFSET.match(time) and _TO_ANOTHER.match(rest)))


def _named(line: str) -> re.Match[str] | None:
    """A name, a time and a text, with a colon before or behind the time."""
    match = _AFTER_NAME.fullmatch(line)
    colon = match and match[3].strip(_SIGNS) and ":" in (match[1][-1], match[3][:1])
    return match if match and colon and is_name(match[1].rstrip(_SIGNS)) else None


def _without_times(said: str, line: str) -> str:
    """The text behind a time. Raises ValueError for one that begins or ends with another, or has one in brackets."""
    span, first, last = _span(said), _AT_START.match(said), _AT_END.fullmatch(said)
    begins = (span and _is_timed(span)) or (first and not _is_of_day(first)) or _named(said)
    ends = last and ((last[2].strip() and last[4]) or _OFFSET.match(last[3]))
    if said.startswith(_COLUMNS) or begins or ends or _IN_BRACKETS.search(said):
        raise ValueError(f"the line {line[:40]!r} has a structure that is not known; write start, end and text")
    return said


def is_name(text: str) -> bool:
    """Whether a text may be a speaker's name: few words, none in lower case, without signs of a sentence.

    In scripts without upper case, names are short.
    """
    words, letters = text.split(), [sign for sign in text if sign.isalpha()]
    if not letters or len(words) > _NAME_WORDS or text.endswith(".") or _OF_SENTENCES & set(text):
        return False
    if any(sign.isupper() or sign.islower() for sign in letters):
        return letters[0].isupper() and not any(word[0].islower() for word in words)
    return len(text) <= (_IDEOGRAPHIC_NAME if _IDEOGRAPHS.search(text) else _NAME_SIGNS)


def seconds(text: str) -> float:
    """A time, h:mm:ss, m:ss or a number of seconds. Raises ValueError for one with more parts."""
    parts = text.replace(",", ".").split(":")
    if len(parts) > 3:
        raise ValueError(f"the time {text} has {len(parts)} parts; write it as h:mm:ss.s")
    found = 0.0
    for part in parts:
        found = 60 * found + float(part)
    return found
