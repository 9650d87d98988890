"""What was left out of a dataset, and why. Nothing is dropped without a row here."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from data_prep.manifest import AnnotatedTurn, Recording

REJECTS_FILE = "rejects.jsonl"


class Reason(Enum):
    """Why a turn, or all turns of a recording, were left out."""

    audio_missing = "audio_missing"
    audio_corrupt = "audio_corrupt"
    empty_text = "empty_text"
    bad_times = "bad_times"
    times_outside_audio = "times_outside_audio"
    channel_missing = "channel_missing"
    too_short = "too_short"
    too_long = "too_long"
    end_frame = "end_frame"


@dataclass
class Reject:
    """One row: a turn (`turn` is its number in the manifest), or a whole recording (`turn` is None)."""

    recording: str
    audio: str
    turn: int | None
    turns: int  # how many turns this row accounts for
    reason: str
    message: str


class Rejects:
    """Collects rejects while a dataset is prepared."""

    def __init__(self) -> None:
        self.rows: list[Reject] = []

    def add_turn(self, recording: Recording, turn: AnnotatedTurn, reason: Reason, message: str) -> None:
        self.rows.append(Reject(recording.id, recording.audio, turn.number, 1, reason.value, message))

    def add_recording(self, recording: Recording, reason: Reason, message: str) -> None:
        row = Reject(recording.id, recording.audio, None, len(recording.turns), reason.value, message)
        self.rows.append(row)

    def counts(self) -> dict[str, int]:
        """Turns left out for each reason, most frequent first."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.reason] += row.turns
        return dict(counts.most_common())

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for row in self.rows:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
