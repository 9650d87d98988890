"""Voices: short recordings with the text that is said in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from csm.audio import load_audio
from csm.decode import open_audio
from csm.inference.segments import Segment

LONGEST_SECONDS = 30.0
"""More takes room from the dialogue and says little more about a voice."""

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm"}


@dataclass(frozen=True)
class Voice:
    """audio: float32 [num_samples] at the model's sample rate."""

    text: str
    audio: Tensor

    def segment(self, speaker: int) -> Segment:
        return Segment(speaker, self.text, self.audio)


def read_voices(folder: Path, sample_rate: int) -> dict[str, Voice]:
    """The voices of a folder of name.wav (or another format) and name.txt, by name.

    Raises ValueError, naming the file, for one that cannot be read, lacks its text or is longer than `LONGEST_SECONDS`,
    and for a folder without voices.
    """
    voices = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            text = path.with_suffix(".txt")
            if not text.is_file():
                raise ValueError(f"{path}: lacks its text; write what is said in it into {text.name}")
            voices[path.stem] = read_voice(path, text.read_text(encoding="utf-8"), sample_rate)
    if not voices:
        raise ValueError(f"{folder}: holds no voices; put name.wav and name.txt there")
    return voices


def read_voice(path: Path, text: str, sample_rate: int) -> Voice:
    """A recording with its text. Raises ValueError as `read_voices` does; what is too long is not decoded."""
    if not text.strip():
        raise ValueError(f"{path.name}: write what is said in the recording, word for word.")
    with path.open("rb") as file:
        reader = open_audio(file, str(path))
        seconds, rate = 0.0, reader.header.sample_rate
        for block in reader.blocks():
            seconds += len(block) / rate
            if seconds > LONGEST_SECONDS:
                raise ValueError(f"{path.name}: is longer than {LONGEST_SECONDS:.0f} s; give a shorter recording.")
    return Voice(" ".join(text.split()), load_audio(path, sample_rate))
