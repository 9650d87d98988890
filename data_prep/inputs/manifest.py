"""Manifests: JSONL files with one recording on each line, or parquet files with the same columns (see parquet.py).

{"audio": "calls/0017.wav", "id": "call-17", "group": "caller-5", "split": "train", "turns": [
    {"speaker": "agent", "text": "Good morning.", "start": 0.42, "end": 1.31, "channel": 0},
    {"speaker": "caller", "text": "Hello, I have a question.", "start": 1.55, "end": 3.20, "channel": 1}]}

audio    path of the file, relative to the manifest's folder, absolute, or an fsspec URL; any common format
id       optional, unique; default: `audio`
group    optional: show or caller; one group is never on both sides of a split. Default: `id`
split    optional: "train", "val" (or "validation", "dev"), or "test", which is left out; default: by pack.val_fraction
turns    optional, in any order: they are sorted by `start`; without them, speakers and words are recognized
  speaker  a name, or a whole number (kept as it is)
  text     optional: as spoken, with case and punctuation; default: recognized
  start, end  optional, seconds; default: the whole recording
  channel  optional, counted from 0; default: all channels mixed to mono
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.audio.storage import is_url, open_path
from data_prep.inputs.splits import split_called
from data_prep.records import GivenTurn, Locator

KEYS = ("audio", "id", "group", "split", "turns")
TURN_KEYS = ("speaker", "text", "start", "end", "channel")
_ENDLESS = 1e9  # seconds, 30 years; neither NaN nor an integer beyond all floats is less


@dataclass(kw_only=True)
class Entry:
    """A recording as an input lists it; with the source's options it becomes a `Recording`."""

    audio: str  # path relative to the source; suffix as the file's
    locator: Locator
    id: str  # unique in the source
    group: str | None = None
    default_group: str | None = None  # if neither `group` nor the option group_pattern gives one
    split: str | None = None
    table: str | None = None  # file that lists it, whose name gives the split if nothing else does
    turns: list[GivenTurn] | None = None  # None: nothing is annotated
    lang: str | None = None  # a code, or what the data say that is none; None: as the source
    dnsmos: float | None = None  # quality as the data's makers measured it
    two_channel: str | None = None  # None: as the source
    sides: bool = False  # see `Annotation.sides`


def read_jsonl(path: str) -> Iterator[Entry]:
    """Yields the entries of a JSONL manifest, in UTF-8 with or without a byte order mark, as Windows programs write it.

    Raises ValueError if a line is malformed (the message names file, line and field), or there are no entries.
    """
    folder, empty = path.rpartition("/")[0], True
    with open_path(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            at = f"{path}, line {number}"
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{at}: not UTF-8 text ({error}); save it as UTF-8") from error
            except ValueError as error:
                raise ValueError(f"{at}: not valid JSON ({error}); each line is one recording") from error
            empty = False
            yield parse_recording(record, folder, at)
    if empty:
        raise ValueError(f"{path}: holds no recordings; for its format see data_prep/inputs/manifest.py")


def parse_recording(record: Any, folder: str, at: str) -> Entry:
    """Parses an entry of a manifest in `folder`. Raises ValueError, beginning with `at`, for a malformed one."""
    check_keys(record, KEYS, ("audio",), at)
    audio = field(record, "audio", at, is_text, "a path")
    path = audio if is_url(audio) else os.path.join(folder, audio)
    recording_id = field(record, "id", at, is_text, "a non-empty string", audio)
    group, split = parse_group(record, at), parse_split(record, at)
    turns = parse_turns(record, at)
    return Entry(audio=audio, locator=Locator(path), id=recording_id, group=group, split=split, turns=turns)


def parse_group(record: dict[str, Any], at: str) -> str | None:
    return field(record, "group", at, is_text, "a non-empty string", None)


def parse_split(record: dict[str, Any], at: str) -> str | None:
    """The split, as `split_called` names it. Raises ValueError, beginning with `at`, for another one."""
    split = field(record, "split", at, is_text, "one of train, validation, test", None)
    try:
        return None if split is None else split_called(split)
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error


def parse_turns(record: dict[str, Any], at: str) -> list[GivenTurn] | None:
    """The turns of a record, by start. Raises ValueError, beginning with `at`, for a malformed one."""
    turns = field(record, "turns", at, lambda value: isinstance(value, list) and value, "a non-empty list", None)
    if turns is None:
        return None
    parsed = [_parse_turn(turn, number, f"{at}, turn {number}") for number, turn in enumerate(turns)]
    return sorted(parsed, key=lambda turn: turn.start)


def _parse_turn(turn: Any, number: int, at: str) -> GivenTurn:
    check_keys(turn, TURN_KEYS, ("speaker",), at)
    speaker = field(turn, "speaker", at, lambda v: is_text(v) or _is_count(v), "a name or a whole number >= 0")
    text = field(turn, "text", at, lambda v: isinstance(v, str), "a string", None)
    end = field(turn, "end", at, _is_seconds, "a number of seconds", None)
    return GivenTurn(
        number=number,
        speaker=str(speaker),
        start=float(field(turn, "start", at, _is_seconds, "a number of seconds", 0.0)),
        end=None if end is None else float(end),
        text=None if text is None else text.strip(),
        channel=field(turn, "channel", at, _is_count, "a whole number >= 0", None),
        speaker_id=speaker if isinstance(speaker, int) else None,
    )


def check_keys(record: Any, allowed: tuple[str, ...], required: tuple[str, ...], at: str) -> None:
    """Raises ValueError, beginning with `at`, unless `record` is an object with these keys."""
    if not isinstance(record, dict):
        raise ValueError(f"{at}: expected a JSON object, got {type(record).__name__}")
    for key in record:
        if key not in allowed:
            raise ValueError(f"{at}: unknown key {key!r}; known are {', '.join(allowed)}")
    for key in required:
        if key not in record:
            raise ValueError(f"{at}: {key!r} is missing")


_REQUIRED = object()


def field(
    record: dict[str, Any], key: str, at: str, valid: Callable[[Any], Any], expected: str, default: Any = _REQUIRED
) -> Any:
    """The value of `key`, or `default` if it is missing or null. Raises ValueError, beginning with `at`, if invalid."""
    value = record.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not valid(value):
        raise ValueError(f"{at}: {key!r} must be {expected}, got {json.dumps(value, default=str)}")
    return value


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _ENDLESS
