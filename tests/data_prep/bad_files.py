"""A folder of recordings as found in practice: good ones, and twelve kinds that are odd or broken.

Of `KINDS`, some are fine and must be kept, some are rejected by the plan, some only by later stages.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16000
DEMO = Path(__file__).resolve().parents[2] / "data_prep" / "demo"


@dataclass
class Kind:
    """A kind of file, and the reason for which the plan or decoding rejects it (`None`: it is read)."""

    name: str  # of the file
    at_plan: str | None = None
    at_decode: str | None = None
    rate: int = RATE
    channels: int = 1


GOOD = ("echo.wav", "welcome.flac", "weasels.mp3")
"""Real speech, each with the turns of `speech` in a side file."""

KINDS = (
    Kind("empty.wav", at_plan="audio_empty"),
    Kind("text.wav", at_plan="audio_corrupt"),
    Kind("truncated.mp3", at_decode="audio_truncated"),
    Kind("8bit.wav", rate=8000),
    Kind("7channels.wav", channels=7),
    Kind("nan.wav", at_decode="not_finite"),
    Kind("12-hours-of-silence.flac", at_plan="recording_too_long", rate=2000),
    Kind("zero-length-turn.wav"),  # one of its two turns is rejected where turns are made: bad_times
    Kind("music.wav"),  # has no speech
    Kind("same-as-echo.wav", at_plan="duplicate_file"),
    Kind("latin1-transcript.wav", at_plan="bad_annotation"),
    Kind("sub folder/café 🎙 call.wav"),
)


def speech(name: str) -> tuple[np.ndarray, list[dict]]:
    """A bundled demo recording: float32 [N] at 16 kHz, and its turns as in a manifest."""
    rows = [json.loads(line) for line in (DEMO / "manifest.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["audio"] == f"{name}.flac"]
    audio, rate = soundfile.read(DEMO / row["audio"], dtype="float32")
    assert rate == RATE
    return audio, row["turns"]


def music(seconds: float, rate: int = RATE) -> np.ndarray:
    """A cadence of chords, each note with overtones and a decaying envelope; float32 [N]."""
    chords = ((220.0, 277.2, 329.6), (293.7, 370.0, 440.0), (329.6, 415.3, 493.9), (220.0, 277.2, 329.6))
    time = np.arange(round(seconds * rate)) / rate
    beat = 0.5  # seconds
    audio = np.zeros_like(time)
    for number in range(int(np.ceil(seconds / beat))):
        since = time - number * beat
        envelope = np.where((since >= 0) & (since < beat), np.exp(-3 * since), 0.0)
        for note in chords[number % len(chords)]:
            audio += envelope * sum(np.sin(2 * np.pi * note * k * since) / k for k in range(1, 6))
    return (0.1 * audio).astype(np.float32)


def write_good_files(folder: Path) -> None:
    """The files `GOOD`, with their turns in side files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in GOOD:
        audio, turns = speech(Path(name).stem)
        soundfile.write(folder / name, audio, RATE)
        _annotate(folder / name, turns)


def write_bad_files(folder: Path, silence_hours: float = 12.0) -> None:
    """One file of each of `KINDS`, next to the good files that it repeats (`write_good_files` first)."""
    audio, turns = speech("help")
    text = turns[0]["text"]

    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This was to be a recording, but it is a text.\n" * 200)
    soundfile.write(folder / "whole.mp3", audio, RATE)
    whole = (folder / "whole.mp3").read_bytes()
    (folder / "truncated.mp3").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.mp3").unlink()
    soundfile.write(folder / "8bit.wav", soxr.resample(speech("sorry")[0], RATE, 8000), 8000, subtype="PCM_U8")
    _annotate(folder / "8bit.wav", speech("sorry")[1])
    seven = np.zeros((len(audio), 7), np.float32)
    seven[:, 3] = audio  # one microphone of a table array heard the talk
    seven[:, 5] = 0.5 * audio
    soundfile.write(folder / "7channels.wav", seven, RATE)
    _annotate(folder / "7channels.wav", turns)
    damaged = audio.copy()
    damaged[len(audio) // 2 :][:100] = np.nan
    soundfile.write(folder / "nan.wav", damaged, RATE, subtype="FLOAT")
    _write_silence(folder / "12-hours-of-silence.flac", silence_hours)
    parking, parking_turns = speech("parking")
    soundfile.write(folder / "zero-length-turn.wav", parking, RATE)
    _annotate(folder / "zero-length-turn.wav", [*parking_turns, {"speaker": 1, "text": "um", "start": 1.5, "end": 1.5}])
    soundfile.write(folder / "music.wav", music(6.0), RATE)
    (folder / "same-as-echo.wav").write_bytes((folder / "echo.wav").read_bytes())
    soundfile.write(folder / "latin1-transcript.wav", speech("urgent")[0], RATE)
    (folder / "latin1-transcript.txt").write_bytes(f"Señor, {text}".encode("latin-1"))
    (folder / "sub folder").mkdir(exist_ok=True)
    emoji, emoji_turns = speech("monkeys")
    soundfile.write(folder / "sub folder" / "café 🎙 call.wav", emoji, RATE)
    _annotate(folder / "sub folder" / "café 🎙 call.wav", emoji_turns)


def write_latin1_name(folder: Path) -> None:
    """A good recording whose file name is not UTF-8."""
    soundfile.write(folder / "renamed.wav", speech("option")[0], RATE)
    os.rename(os.fsencode(folder / "renamed.wav"), os.fsencode(folder) + b"/ol\xe9.wav")


def _annotate(audio: Path, turns: list[dict]) -> None:
    audio.with_suffix(".json").write_text(json.dumps({"turns": turns}))


def _write_silence(path: Path, hours: float) -> None:
    rate, block = 2000, np.zeros(1 << 20, np.int16)  # a low rate, as encoding takes its time
    remaining = round(hours * 3600 * rate)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="FLAC", compression_level=0) as file:
        while remaining:
            file.write(block[:remaining])
            remaining -= min(len(block), remaining)
