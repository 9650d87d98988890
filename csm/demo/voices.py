"""Voices: short recordings with the text that is said in them, and those of `csm voice make`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from csm.audio import load_audio, mix_to_mono, resample
from csm.decode import open_audio
from csm.inference.generator import Generator
from csm.inference.segments import Segment
from csm.inference.voice import SUFFIX
from csm.inference.voice import Voice as SavedVoice
from csm.serving.decode_upload import LONGEST_DECODING, Refused, command, decoded

LONGEST_SECONDS = 30.0
"""More takes room from the dialogue and says little more about a voice."""

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm"}


class Voice(Protocol):
    def segments(self, generator: Generator, speaker: int) -> list[Segment]:
        """The turns that come first in the context, said by `speaker`."""
        ...


@dataclass(frozen=True)
class Recording:
    """audio: float32 [num_samples] at the model's sample rate."""

    text: str
    audio: Tensor

    def segments(self, generator: Generator, speaker: int) -> list[Segment]:
        return [Segment(speaker, self.text, self.audio)]


def read_voices(folder: Path, generator: Generator) -> dict[str, Voice]:
    """The voices of a folder by name: name.safetensors of `csm voice make`, or name.wav (or another format) and
    name.txt.

    Raises ValueError, naming the file, for one that cannot be read, lacks its text, is longer than `LONGEST_SECONDS`,
    is of another codec or has the name of another, and for a folder without voices.
    """
    voices: dict[str, Voice] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in {*SUFFIXES, SUFFIX}:
            continue
        if path.stem in voices:
            raise ValueError(f"{path}: there is another voice {path.stem} in this folder; rename or remove one of them")
        voices[path.stem] = _saved(path, generator) if path.suffix == SUFFIX else _recorded(path, generator.sample_rate)
    if not voices:
        raise ValueError(
            f"{folder}: holds no voices; put name.wav and name.txt there, or name{SUFFIX} of csm voice make"
        )
    return voices


def _saved(path: Path, generator: Generator) -> SavedVoice:
    voice = SavedVoice.load(path)
    if voice.seconds > LONGEST_SECONDS:
        limit = f"{LONGEST_SECONDS:.0f}"
        raise ValueError(f"{path}: is longer than {limit} s; make it again with csm voice make --seconds {limit}")
    voice.segments(generator, 0)  # raises for another codec
    return voice


def _recorded(path: Path, sample_rate: int) -> Recording:
    """A recording of whoever runs the demo; what is too long is not decoded."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        raise ValueError(f"{path}: lacks its text; write what is said in it into {text.name}")
    said = _text(text.read_text(encoding="utf-8"), path)
    with path.open("rb") as file:
        reader = open_audio(file, str(path))
        seconds, rate = 0.0, reader.header.sample_rate
        for block in reader.blocks():
            seconds += len(block) / rate
            if seconds > LONGEST_SECONDS:
                raise ValueError(f"{path}: is longer than {LONGEST_SECONDS:.0f} s; give a shorter recording")
    return Recording(said, load_audio(path, sample_rate))


def read_upload(path: Path, text: str, sample_rate: int) -> Recording:
    """A visitor's recording with its text, decoded in a process of its own, under limits.

    Raises ValueError, saying what is wrong with it.
    """
    said = _text(text, path)
    try:
        process = subprocess.run(
            command(LONGEST_SECONDS),
            input=path.read_bytes(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=LONGEST_DECODING,
        )
        rate, samples = decoded(process.stdout, process.returncode)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path.name}: it takes too long to decode; give another recording.") from None
    except Refused as error:
        raise ValueError(f"{path.name}: {error}.") from error
    return Recording(said, resample(torch.tensor(mix_to_mono(samples)[0]), rate, sample_rate).clamp(-1.0, 1.0))


def _text(text: str, path: Path) -> str:
    if not text.strip():
        raise ValueError(f"{path.name}: write what is said in the recording, word for word.")
    return " ".join(text.split())
