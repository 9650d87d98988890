"""Turns as JSON records, {"speaker": 0, "text": "...", "audio": "turn.wav"}: contexts and evaluation prompts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from csm.audio import load_audio
from csm.files import read_json_lines
from csm.inference.segments import Segment

TURN_FIELDS = ("speaker", "text", "audio")


def read_context(path: Path, sample_rate: int) -> list[Segment]:
    """Segments of a JSON Lines file, a turn a line, with audio paths relative to the file.

    Raises FileNotFoundError, or ValueError naming the line that cannot be read.
    """
    segments = []
    for number, record in read_json_lines(path):
        where = f"{path}, line {number}"
        speaker, text = check_turn(record, where, required=TURN_FIELDS)
        try:
            audio = load_audio(path.parent / record["audio"], sample_rate)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        segments.append(Segment(speaker, text, audio))
    return segments


def check_turn(
    record: Any, where: str, required: Collection[str], allowed: Collection[str] | None = None
) -> tuple[int, str]:
    """(speaker, text) of a turn's record. allowed: None allows other fields too.

    Raises ValueError, beginning with `where`, unless `record` is a mapping with the required fields, of their types.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object")
    if missing := set(required) - set(record):
        raise ValueError(f"{where}: lacks {', '.join(sorted(missing))}")
    if allowed is not None and (unknown := set(record) - set(allowed)):
        raise ValueError(f"{where}: unknown field {', '.join(sorted(unknown))}; known: {', '.join(sorted(allowed))}")
    if not isinstance(record["text"], str) or not record["text"].strip():
        raise ValueError(f"{where}: text must be a non-empty string")
    if not isinstance(record.get("audio", ""), str):
        raise ValueError(f"{where}: audio must be a path")
    speaker = record["speaker"]
    if isinstance(speaker, str) and speaker.isdecimal():
        speaker = int(speaker)
    if type(speaker) is not int or speaker < 0:
        raise ValueError(f"{where}: speaker must be an integer from 0, got {speaker!r}")
    return speaker, record["text"]
