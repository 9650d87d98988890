"""Voices: turns that come before what is spoken, as uploaded recordings, kept on disk, or as files of `csm voice make`;
and the model's own speakers."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from csm.audio import load_audio, save_wav
from csm.files import atomic_directory, remove, sync
from csm.inference.generator import Generator
from csm.inference.segments import Segment
from csm.inference.voice import Voice as SavedVoice
from csm.serving.errors import ApiError, invalid
from csm.serving.schemas import MOST_SPEAKERS
from csm.serving.settings import Settings

SHORTEST_CONSENT = 10


@dataclass(frozen=True)
class Voice:
    """speaker: whose number it speaks with, if a request says no other; turns: none for a speaker of the model."""

    name: str
    speaker: int
    turns: tuple[Segment, ...] = ()
    seconds: float = 0.0
    created: int = 0
    uploaded: bool = False

    def context(self, speaker: int) -> list[Segment]:
        return [replace(turn, speaker=speaker) for turn in self.turns]

    @property
    def public(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "voice",
            "name": self.name,
            "speaker": self.speaker,
            "seconds": round(self.seconds, 2),
            "created": self.created,
            "uploaded": self.uploaded,
        }


@dataclass(frozen=True)
class _Record:
    """voice.json. consent: the statement of whoever uploaded it."""

    name: str
    speaker: int
    text: str
    consent: str
    created: int


class Voices:
    """One folder for each uploaded voice, voice.json and audio.wav; loaded when the server starts.

    Raises ValueError for a voice of the settings whose codec is not the model's, or whose name an uploaded voice has.
    """

    def __init__(self, settings: Settings, generator: Generator) -> None:
        self.folder, self.sample_rate = settings.data / "voices", generator.sample_rate
        self.limits = settings.limits
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What a server that was killed had begun to write or to delete.
        for unfinished in [*self.folder.glob("*.partial"), *self.folder.glob("*.deleted")]:
            remove(unfinished)
        self.own = {name: _own(name, given, generator) for name, given in settings.voices.items()}
        self.uploaded = {path.parent.name: self._load(path.parent) for path in sorted(self.folder.glob("*/voice.json"))}
        for name in self.own.keys() & self.uploaded.keys():
            message = f"--voice {name}: a voice of this name was uploaded to {self.folder / name}"
            raise ValueError(f"{message}; delete that folder, or choose another name")

    def get(self, name: str, param: str) -> Voice:
        """Raises ApiError 404 for a name that there is not: no other voice takes its place."""
        voice = self.uploaded.get(name) or self.own.get(name) or _speaker(name)
        if voice is None:
            message = f"there is no voice {name!r}; GET /v1/audio/voices lists them, and speaker_0 is the model's own"
            raise ApiError(404, message, param, "voice_not_found")
        return voice

    def check_new(self, name: str, text: str, consent: str) -> None:
        """Raises ApiError for a voice that cannot be added."""
        if name in self.uploaded or name in self.own or _speaker(name):
            raise ApiError(409, f"there is a voice {name!r}; delete it first", "name", "voice_exists")
        if len(self.uploaded) >= self.limits.voices:
            raise ApiError(
                409, f"there are {self.limits.voices} voices, the most; delete one", "name", "too_many_voices"
            )
        if not text.strip() or len(text) > self.limits.text:
            raise invalid(
                f"ref_text: must be what is said in the recording, up to {self.limits.text} characters", "ref_text"
            )
        if not SHORTEST_CONSENT <= len(consent.strip()) <= self.limits.text:
            message = (
                "consent: must be a statement that the speaker agrees to the use of this voice, and how that is known"
            )
            raise invalid(message, "consent", "consent_required")

    def add(self, name: str, speaker: int, text: str, consent: str, audio: Tensor) -> Voice:
        """Writes a voice that `check_new` has passed."""
        record = _Record(name, speaker, text, consent, int(time.time()))
        with atomic_directory(self.folder / name) as folder:
            save_wav(folder / "audio.wav", audio, self.sample_rate)
            (folder / "voice.json").write_text(json.dumps(asdict(record), indent=2))
        voice = self.uploaded[name] = self._load(self.folder / name)
        return voice

    def delete(self, name: str) -> None:
        if name not in self.uploaded:
            raise ApiError(404, f"there is no uploaded voice {name!r}", "name", "voice_not_found")
        gone = self.folder / f"{name}.deleted"
        (self.folder / name).rename(gone)
        del self.uploaded[name]
        remove(gone)
        sync(self.folder)

    def _load(self, folder: Path) -> Voice:
        record = _Record(**json.loads((folder / "voice.json").read_text()))
        audio = load_audio(folder / "audio.wav", self.sample_rate)
        seconds = len(audio) / self.sample_rate
        turn = Segment(record.speaker, record.text, audio)
        return Voice(record.name, record.speaker, (turn,), seconds, record.created, uploaded=True)


def _own(name: str, given: int | SavedVoice, generator: Generator) -> Voice:
    """A name for a speaker of the model, or for turns, which speaker 0 says unless a request names another."""
    if isinstance(given, int):
        return Voice(name, given)
    return Voice(name, 0, tuple(given.segments(generator, 0)), given.seconds)


def _speaker(name: str) -> Voice | None:
    number = name.removeprefix("speaker_")
    if number == name or not number.isdecimal() or not number.isascii() or str(int(number[:4])) != number:
        return None
    return Voice(name, int(number)) if int(number) < MOST_SPEAKERS else None
