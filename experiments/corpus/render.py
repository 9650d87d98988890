"""Sound of conversations: each is one FLAC file and one record, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from csm.files import write_atomically
from experiments.corpus.plan import Conversation
from experiments.corpus.voices import SAMPLE_RATE, VOICES, Voice, load_voice, source_of

VERSION = 1
"""Goes up when the same conversation would sound different."""
TEXT_LICENCE = "Apache-2.0 (texts written for this project)"

_MARGIN = 0.05  # seconds of silence left on each side of a turn
_FLOOR = 0.01  # of a turn's highest amplitude: below it is silence (-40 dB)
_LEVEL = 0.06  # root mean square of every turn (-24 dB of full scale), so that voices are equally loud
_CEILING = 0.9


Task = tuple[Conversation, Path]
"""A conversation and the folder it goes to."""


def render(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Conversation, dict[str, Any], bool]]:
    """Yields every conversation with its record and whether it had to be rendered: first those that are there."""
    left = []
    for one, folder in tasks:
        record = finished(one, folder)
        if record is None:
            left.append((one, folder))
        else:
            yield one, record, False
    if workers == 1:
        yield from ((one, _render((one, folder)), True) for one, folder in left)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for (one, _), record in zip(left, pool.imap(_render, left), strict=True):
            yield one, record, True


def finished(one: Conversation, folder: Path) -> dict[str, Any] | None:
    """The record of a conversation that was rendered by this program's version; None if it was not."""
    path = _record_path(one, folder)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record["made_from"] == _fingerprint(one) else None


def _render(task: Task) -> dict[str, Any]:
    one, folder = task
    audio, turns = sound(one)
    path = folder / "audio" / f"{one.id}.flac"
    # The record comes last: a file that it names is whole.
    write_atomically(path, lambda file: soundfile.write(file, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16"))
    voices = sorted({turn.voice for turn in one.turns})
    record = {
        "id": one.id,
        "set": one.set,
        "audio": f"audio/{path.name}",
        "seconds": len(audio) / SAMPLE_RATE,
        "exchanges": one.exchanges,
        "turns": turns,
        "voices": {voice: source_of(voice) for voice in voices},
        "text_licence": TEXT_LICENCE,
        "made_from": _fingerprint(one),
    }
    text = json.dumps(record, ensure_ascii=False)
    write_atomically(_record_path(one, folder), lambda file: file.write_text(text, encoding="utf-8"))
    return record


def sound(one: Conversation) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A conversation as float32 `[samples]` at 24 kHz, and its turns with start and end in seconds."""
    pieces: list[np.ndarray] = []
    turns: list[dict[str, Any]] = []
    position = 0
    for turn in one.turns:
        gap, speech = (
            np.zeros(round(turn.gap * SAMPLE_RATE), np.float32),
            speak(turn.voice, turn.line.spoken, turn.rate),
        )
        pieces += [gap, speech]
        start = position + len(gap)
        position = start + len(speech)
        turns.append(
            {
                "speaker": list(VOICES).index(turn.voice),
                "voice": turn.voice,
                "text": turn.line.text,
                "start": round(start / SAMPLE_RATE, 4),
                "end": round(position / SAMPLE_RATE, 4),
            }
        )
    return np.concatenate(pieces), turns


def speak(voice: str, text: str, rate: float) -> np.ndarray:
    """One turn as float32 `[samples]` at 24 kHz, without silence around it, at the level of all turns."""
    audio, sample_rate = _loaded(voice).speak(text, rate)
    if sample_rate != SAMPLE_RATE:
        audio = soxr.resample(audio, sample_rate, SAMPLE_RATE, quality="HQ")
    loud = np.flatnonzero(np.abs(audio) > _FLOOR * np.abs(audio).max())
    if not len(loud):
        raise ValueError(f"the voice {voice} says nothing for {text!r}")
    margin = round(_MARGIN * SAMPLE_RATE)
    audio = np.pad(audio, margin)[loud[0] : loud[-1] + 1 + 2 * margin]
    level = min(_LEVEL / np.sqrt(np.mean(audio**2)), _CEILING / np.abs(audio).max())
    return (audio * level).astype(np.float32)


@cache
def _loaded(voice: str) -> Voice:
    return load_voice(voice)


def _record_path(one: Conversation, folder: Path) -> Path:
    return folder / "records" / f"{one.id}.json"


def _fingerprint(one: Conversation) -> str:
    """Hash of all that the sound is made from."""
    content = json.dumps([VERSION, SAMPLE_RATE, one.id, [asdict(turn) for turn in one.turns]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
