"""The bundled demo conversations, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import data_prep.demo
from csm.audio import load_audio

DEMO = Path(data_prep.demo.__file__).parent


@dataclass
class SpokenTurn:
    speaker: int
    text: str
    audio: Tensor  # float32 [num_samples], 24 kHz


def records(ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The manifest's entries of some conversations."""
    for line in (DEMO / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["id"] in ids:
            yield record


def spoken_turns(ids: Sequence[str]) -> dict[str, list[SpokenTurn]]:
    """Conversations by id, each a list of turns."""
    conversations = {}
    for record in records(ids):
        audio = load_audio(DEMO / record["audio"], 24_000)
        conversations[record["id"]] = [
            SpokenTurn(t["speaker"], t["text"], audio[round(t["start"] * 24_000) : round(t["end"] * 24_000)])
            for t in record["turns"]
        ]
    return conversations
