"""Side files: annotation of `name.wav` in a file next to it, of the same name with another suffix.

    name.json  {"turns": [...]} with turns as in a manifest, or {"text": "...", "speaker": ...} for one turn over the
               whole recording; optionally "group" and "split"; other keys, and files without these, are ignored
    name.stm   speakers, times and texts (NIST sclite)
    name.rttm  speakers and times (NIST RT-09)
    name.txt   the text of the whole recording: one turn

If there are several, the first in this order counts.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

from data_prep.inputs.manifest import parse_group, parse_split, parse_turns
from data_prep.records import GivenTurn

SIDE_SUFFIXES = (".json", ".stm", ".rttm", ".txt")

_NOT_SPEECH = ("ignore_time_segment_in_scoring", "inter_segment_gap")  # STM texts and speakers that mark unscored time


@dataclass
class Annotation:
    turns: list[GivenTurn] | None  # None: nothing is annotated
    group: str | None = None
    split: str | None = None


def parse_side_file(suffix: str, content: bytes, stem: str) -> Annotation:
    """Reads a side file of the recording named `stem`. Raises ValueError saying what is wrong with it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error}); save it as UTF-8") from error
    if suffix == ".json":
        return _parse_json(text)
    if suffix == ".stm":
        return Annotation(_parse_stm(text, stem))
    if suffix == ".rttm":
        return Annotation(_parse_rttm(text, stem))
    return Annotation([GivenTurn(0, "0", 0.0, None, " ".join(text.split()), speaker_id=0)])


def _parse_json(text: str) -> Annotation:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    if record.get("turns") is None and isinstance(record.get("text"), str):
        speaker = record.get("speaker")
        record["turns"] = [{"speaker": 0 if speaker is None else speaker, "text": record["text"]}]
    return Annotation(parse_turns(record, "its entry"), parse_group(record, "it"), parse_split(record, "it"))


@dataclass
class _Row:
    """A line of STM or RTTM."""

    file: str
    channel: str
    speaker: str
    start: float
    end: float
    text: str | None


def _parse_stm(text: str, stem: str) -> list[GivenTurn] | None:
    """Lines `file channel speaker start end [<labels>] text`."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split(maxsplit=5)
        if not parts or parts[0].startswith(";;"):
            continue
        if len(parts) < 5:
            raise ValueError(f"line {number}: expected file, channel, speaker, start, end, text")
        start, end = _seconds(parts[3], number), _seconds(parts[4], number)
        said = re.sub(r"^<[^>]*>\s*", "", parts[5] if len(parts) > 5 else "").strip()
        if said.lower() not in _NOT_SPEECH and parts[2] not in _NOT_SPEECH:
            rows.append(_Row(parts[0], parts[1], parts[2], start, end, said))
    return _turns(rows, stem)


def _parse_rttm(text: str, stem: str) -> list[GivenTurn] | None:
    """Lines `SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`; other kinds of line are not used."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split()
        if not parts or parts[0] != "SPEAKER":
            continue
        if len(parts) < 8:
            raise ValueError(f"line {number}: expected SPEAKER, file, channel, start, duration, two fields, speaker")
        start, duration = _seconds(parts[3], number), _seconds(parts[4], number)
        rows.append(_Row(parts[1], parts[2], parts[7], start, round(start + duration, 6), None))
    return _turns(rows, stem)


def _turns(rows: list[_Row], stem: str) -> list[GivenTurn] | None:
    if not rows:
        raise ValueError("holds no turns")
    files = {row.file for row in rows}
    if len(files) > 1:
        rows = [row for row in rows if row.file == stem]
        if not rows:
            raise ValueError(f"describes {len(files)} files, none of them {stem!r}")
    # Most tools write channel 1 whatever they processed; only several different numbers refer to channels.
    channels = {row.channel for row in rows}
    turns = [
        GivenTurn(n, row.speaker, row.start, row.end, row.text, _channel(row.channel) if len(channels) > 1 else None)
        for n, row in enumerate(rows)
    ]
    return sorted(turns, key=lambda turn: turn.start)


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
