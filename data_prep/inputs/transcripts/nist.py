"""NIST's line formats: RTTM (RT-09), STM and CTM (sclite). A file may describe many recordings.

Names of files and speakers may contain blanks: a line begins with the name of a recording that there is, or else with
as few words as leave the rest in form.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Iterator
from itertools import chain, takewhile

from data_prep.inputs.transcripts.words import SaidWord, numbered, turns_of_words
from data_prep.records import GivenTurn

_NOT_SPEECH = ("ignore_time_segment_in_scoring", "inter_segment_gap")  # STM texts and speakers that mark unscored time
_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"
_CONFIDENCE = r"NA|[01]|[-+]?\d*\.\d+(?:[eE][-+]?\d+)?"  # that is hardly a word of digits
# Behind the name of the file:
_RTTM = re.compile(
    rf"(?P<channel>\S+)\s+(?P<start>{_NUMBER})\s+(?P<length>{_NUMBER})\s+\S+\s+\S+"
    rf"\s+(?P<speaker>(?!<NA>)\S.*?)(?:\s+(?:<NA>|{_NUMBER})){{0,2}}"
)
_STM = re.compile(
    rf"(?P<channel>\w+)\s+(?P<speaker>\S+)\s+(?P<start>{_NUMBER})\s+(?P<end>{_NUMBER})(?:\s+(?P<text>.*))?"
)
_CTM, _CTM_OF_ANY_CONFIDENCE = (
    re.compile(
        rf"(?P<channel>\w+)\s+(?P<start>{_NUMBER})\s+(?P<length>{_NUMBER})\s+(?P<word>\S+)"
        rf"(?:\s+(?:{confidence})(?:\s+(?P<type>[^\W\d]\S*|<\S+|-)(?:\s+(?P<speaker>\S+))?)?)?"
    )
    for confidence in (_CONFIDENCE, f"NA|{_NUMBER}")
)

Rows = dict[str, list[tuple[str, GivenTurn]]]
"""Name of a recording -> its turns, each with the name of its channel."""


def parse_rttm(text: str, names: Collection[str] = ()) -> Rows:
    """Lines `SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`; other kinds of line are not used."""
    rows: Rows = {}
    lines = _Lines(_RTTM, names)
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        parts = line.split()
        if not parts or parts[0] != "SPEAKER":
            continue
        if len(parts) < 8:
            raise ValueError(f"line {number}: expected SPEAKER, file, channel, start, duration, two fields, speaker")
        file, match = lines.parts(line.strip().removeprefix("SPEAKER").strip())
        if match is None:
            _seconds(parts[3], number), _seconds(parts[4], number)
            raise ValueError(f"line {number}: expected start and duration before two <NA>, and a speaker behind them")
        start, length = _seconds(match["start"], number), _seconds(match["length"], number)
        turn = GivenTurn(0, match["speaker"], start, round(start + length, 6))
        rows.setdefault(file, []).append((match["channel"], turn))
    return _checked(rows)


def parse_stm(text: str, names: Collection[str] = ()) -> Rows:
    """Lines `file channel speaker start end [<labels>] text`."""
    rows: Rows = {}
    lines = _Lines(_STM, names)
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        parts = line.split()
        if not parts or parts[0].startswith(";;"):
            continue
        if len(parts) < 5:
            raise ValueError(f"line {number}: expected file, channel, speaker, start, end, text")
        file, match = lines.parts(line.strip())
        if match is None:
            _seconds(parts[3], number), _seconds(parts[4], number)
            raise ValueError(f"line {number}: expected file, channel, speaker, start, end, text")
        start, end = _seconds(match["start"], number), _seconds(match["end"], number)
        said = re.sub(r"^<[^>]*>\s*", "", match["text"] or "").strip()
        rows.setdefault(file, [])
        if said.lower() not in _NOT_SPEECH and match["speaker"] not in _NOT_SPEECH:
            turn = GivenTurn(0, match["speaker"], start, end, said)
            rows[file].append((match["channel"], turn))
    return _checked({file: found for file, found in rows.items() if found})


def parse_ctm(text: str, names: Collection[str] = ()) -> Rows:
    """Lines `file channel start duration word [confidence [type [speaker]]]`; words become turns.

    Without speakers, each channel is one. Whole numbers (95) are confidences in files that cannot be read otherwise.
    """
    try:
        return _of_words(text, names, _CTM)
    except ValueError:
        return _of_words(text, names, _CTM_OF_ANY_CONFIDENCE)


def _of_words(text: str, names: Collection[str], form: re.Pattern[str]) -> Rows:
    words: dict[str, list[tuple[str, SaidWord]]] = {}
    lines = _Lines(form, names)
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        file, match = lines.parts(line.strip())
        if match is None:
            raise ValueError(f"line {number}: expected file, channel, start, duration, word, and a confidence or none")
        start, length = _seconds(match["start"], number), _seconds(match["length"], number)
        word = SaidWord(match["word"], start, round(start + length, 6), match["speaker"] or match["channel"])
        words.setdefault(file, []).append((match["channel"], word))
    rows: Rows = {}
    for file, of_file in words.items():
        for channel in dict.fromkeys(channel for channel, _ in of_file):
            turns = turns_of_words([word for name, word in of_file if name == channel])
            rows.setdefault(file, []).extend((channel, turn) for turn in turns)
    return _checked(rows)


class _Lines:
    """Lines that begin with the name of a file, and go on in a form; `names` are those known."""

    def __init__(self, form: re.Pattern[str], names: Collection[str]) -> None:
        self.form, self.names = form, frozenset(names)
        self.longest = max(map(len, self.names), default=0)

    def parts(self, line: str) -> tuple[str, re.Match[str] | None]:
        """The name of the file, and the rest, which has the form; None: no rest has."""
        for start, end in chain(self._known(line), _blanks(line)):
            match = self.form.fullmatch(line, end)
            if match:
                return line[:start], match
        return "", None

    def _known(self, line: str) -> Iterator[tuple[int, int]]:
        """The blanks behind known names."""
        short = takewhile(lambda blank: blank[0] <= self.longest, _blanks(line))
        return (blank for blank in short if line[: blank[0]] in self.names)


def _blanks(line: str) -> Iterator[tuple[int, int]]:
    """Start and end of each run of blanks."""
    return (blank.span() for blank in re.finditer(r"\s+", line))


def of_recording(rows: Rows, stem: str) -> list[GivenTurn]:
    """The turns of the recording named `stem`: of all rows, if they are of a single file, which tools name at will."""
    if len(rows) > 1 and stem not in rows:
        raise ValueError(f"describes {len(rows)} files, none of them {stem!r}")
    return turns_of(rows[stem] if stem in rows else next(iter(rows.values())))


def turns_of(rows: list[tuple[str, GivenTurn]]) -> list[GivenTurn]:
    """Turns with their channels as indices.

    Most tools write channel 1 whatever they processed; only several different numbers refer to channels.
    """
    several = len({channel for channel, _ in rows}) > 1
    for channel, turn in rows:
        turn.channel = _channel(channel) if several else None
    return numbered([turn for _, turn in rows])


def _checked(rows: Rows) -> Rows:
    if not rows:
        raise ValueError("holds no turns")
    return rows


def _channel(name: str) -> int:
    """Index of a channel, which is written as a number from 1 or a letter from A."""
    if name.isascii() and name.isdigit() and int(name) > 0:
        return int(name) - 1
    if len(name) == 1 and name.isascii() and name.isalpha():
        return ord(name.upper()) - ord("A")
    raise ValueError(f"channel {name!r} must be a number from 1, or a letter from A")


def _seconds(text: str, line: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"line {line}: expected a number of seconds, got {text!r}")
    return seconds
