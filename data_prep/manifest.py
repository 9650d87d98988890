"""What a user hands in: recordings and their turns.

Either a manifest, a JSONL file with one recording on each line:

    {"audio": "calls/0017.wav", "id": "call-17", "group": "caller-5", "split": "train", "turns": [
        {"speaker": "agent", "text": "Good morning.", "start": 0.42, "end": 1.31, "channel": 0},
        {"speaker": "caller", "text": "Hello, I have a question.", "start": 1.55, "end": 3.20, "channel": 1}]}

    audio    path of the file, relative to the manifest's folder; any common format, sample rate, channel count
    id       optional, unique; default: `audio`
    group    optional: show or caller; one group is never on both sides of a split. Default: `id`
    split    optional: "train" or "val"; default: by `val_fraction`
    turns    in any order; they are sorted by `start`
      speaker  a name (names are numbered by order of appearance) or a whole number (kept as it is)
      text     as spoken, with case and punctuation
      start, end  optional, seconds; default: the whole recording
      channel  optional, counted from 0; default: all channels mixed to mono

or a plain folder: every `name.wav` (or another audio format) with the text of `name.txt` is a recording of one turn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".g722", ".aiff", ".webm"})
SPLITS = ("train", "val")


@dataclass
class AnnotatedTurn:
    """One turn as the user describes it."""

    number: int  # place in the manifest's list, for messages
    speaker: str | int
    text: str
    start: float  # seconds
    end: float | None  # None: to the end of the recording
    channel: int | None  # None: all channels mixed


@dataclass
class Recording:
    """One audio file and its turns, by start time."""

    id: str
    audio: str  # path relative to the input's folder
    path: Path
    group: str
    split: str | None  # None: decided by the group's hash
    turns: list[AnnotatedTurn]


def read_input(path: str | Path) -> list[Recording]:
    """Reads a manifest or a plain folder, completely, before any work begins.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a line breaks the format (the message names file, line and field), two recordings have one id, or
            there are no recordings at all.
    """
    path = Path(path)
    if path.is_dir():
        recordings = _read_folder(path)
    elif path.is_file():
        recordings = _read_manifest(path)
    else:
        raise FileNotFoundError(f"{path}: no such input; give input=MANIFEST.jsonl or a folder of name.wav + name.txt")
    seen: set[str] = set()
    for recording in recordings:
        if recording.id in seen:
            raise ValueError(f"{path}: two recordings have the id {recording.id!r}; give each its own")
        seen.add(recording.id)
    return recordings


def _read_folder(folder: Path) -> list[Recording]:
    audio = [file for file in folder.iterdir() if file.suffix.lower() in AUDIO_SUFFIXES]
    stems = {file.stem for file in audio}
    # A text without audio becomes a recording that is rejected as missing, so that it shows in the report.
    lone = [file.with_suffix(".wav") for file in folder.glob("*.txt") if file.stem not in stems]
    if not audio:
        raise ValueError(f"{folder}: holds no audio files; put name.wav + name.txt there, or give a manifest.jsonl")
    recordings = []
    for file in sorted(audio + lone):
        text_file = file.with_suffix(".txt")
        text = _read_text(text_file) if text_file.is_file() else ""
        turn = AnnotatedTurn(0, 0, text, 0.0, None, None)
        recordings.append(Recording(file.stem, file.name, file, file.stem, None, [turn]))
    return recordings


def _read_text(file: Path) -> str:
    try:
        return " ".join(file.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); save it as UTF-8") from error


def _read_manifest(file: Path) -> list[Recording]:
    recordings = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not valid JSON ({error}); each line is one recording") from error
        recordings.append(_parse_recording(record, file.parent, where))
    if not recordings:
        raise ValueError(f"{file}: holds no recordings; each line is one, see data_prep/manifest.py")
    return recordings


def _parse_recording(record: Any, folder: Path, where: str) -> Recording:
    allowed = ("audio", "id", "group", "split", "turns")
    _check_keys(record, allowed, ("audio", "turns"), where)
    audio = _field(record, "audio", where, _is_text, "a path")
    recording_id = _field(record, "id", where, _is_text, "a text", audio)
    group = _field(record, "group", where, _is_text, "a text", recording_id)
    split = _field(record, "split", where, lambda value: value in SPLITS, 'one of "train", "val"', None)
    turns = _field(
        record, "turns", where, lambda value: isinstance(value, list) and value, "a list with a turn or more"
    )
    parsed = [_parse_turn(turn, number, f"{where}, turn {number}") for number, turn in enumerate(turns)]
    parsed.sort(key=lambda turn: turn.start)
    return Recording(recording_id, audio, folder / audio, group, split, parsed)


def _parse_turn(turn: Any, number: int, where: str) -> AnnotatedTurn:
    allowed = ("speaker", "text", "start", "end", "channel")
    _check_keys(turn, allowed, ("speaker", "text"), where)
    return AnnotatedTurn(
        number=number,
        speaker=_field(turn, "speaker", where, lambda v: _is_text(v) or _is_count(v), "a name or a whole number >= 0"),
        text=_field(turn, "text", where, lambda v: isinstance(v, str), "a text").strip(),
        start=_field(turn, "start", where, _is_seconds, "a number of seconds", 0.0),
        end=_field(turn, "end", where, _is_seconds, "a number of seconds", None),
        channel=_field(turn, "channel", where, _is_count, "a whole number >= 0", None),
    )


def _check_keys(record: Any, allowed: tuple[str, ...], required: tuple[str, ...], where: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for key in record:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(allowed)}")
    for key in required:
        if key not in record:
            raise ValueError(f"{where}: {key!r} is missing")


_REQUIRED = object()


def _field(
    record: dict[str, Any], key: str, where: str, valid: Callable[[Any], Any], expected: str, default: Any = _REQUIRED
) -> Any:
    value = record.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not valid(value):
        raise ValueError(f"{where}: {key!r} must be {expected}, got {json.dumps(value)}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
