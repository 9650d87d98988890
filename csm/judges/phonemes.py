# ruff: noqa: RUF001 phonetic symbols
"""Phoneme recognizers with a CTC output: the judges of how a word was pronounced.

    wav2vec2    wav2vec2-lv-60-espeak-cv-ft or another model of its kind, from the hub     CtcPhonemes
    hama        a small recognizer whose weights are part of its package                   Hama

Both were trained on labels of a converter from text to phonemes, which picks the wrong one of two pronunciations often
enough; their thresholds belong calibrated on speech whose variants are known (csm/evaluation/sets/scorers.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import PhonemeKind
from csm.judges.ctc import PHONEMES, RATE, SPECIAL, CtcModel
from csm.judges.hub import ModelUnavailable
from csm.provenance import package_versions

_CONSONANTS = "b d d͡ʒ f g h j k l m n p s t t͡ʃ v w z ð ŋ ɹ ʃ ʒ θ"
_VOWELS = "aɪ aʊ eɪ i oʊ u æ ɑ ɔ ɔɪ ə ɛ ɝ ɪ ʊ ʌ"
_ENGLISH = frozenset(f"{_CONSONANTS} {_VOWELS}".split())


class PhonemeRecognizer(Protocol):
    """A loaded recognizer.

    vocabulary: the symbol of each output; blank: number of the output that writes nothing
    symbols:    those of `vocabulary` that are sounds of English
    """

    name: str
    vocabulary: list[str]
    blank: int
    symbols: Collection[str]

    def log_probs(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Log-probabilities float32 [T, V] of mono float32 `audio [num_samples]`, of any length."""
        ...

    def spell(self, phones: str) -> str:
        """Phonemes in espeak's symbols as this recognizer writes them."""
        ...

    def describe(self) -> dict[str, Any]:
        """Model, weights and package versions."""
        ...


class CtcPhonemes(CtcModel):
    """A model of transformers that writes espeak's symbols. Raises ModelUnavailable as `CtcModel` does."""

    def __init__(self, model: str | None, device: str) -> None:
        super().__init__(model or PHONEMES, device)
        self.name = f"{Path(self.source).name} (phonemes, CTC)"
        self.symbols: Collection[str] = [symbol for symbol in self.vocabulary if symbol not in SPECIAL]

    def spell(self, phones: str) -> str:
        return phones

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **super().describe()}


class Hama:
    """hama (Apache-2.0), 4.7 MB: IPA of English and Korean, of which only the symbols it uses for English are taken.

    It marks no length of vowels, and writes a flap as "t". Quiet or fast speech is often too much for it.

    Raises:
        ModelUnavailable: the package is not installed, or has no engine for this machine.
    """

    name = "hama (phonemes, CTC)"
    symbols: Collection[str] = _ENGLISH
    _SPELLING = (("ː", ""), ("ɚ", "ɝ"), ("ɾ", "t"), ("ɐ", "ə"))
    _MIN_SAMPLES = 400  # of its first frame

    def __init__(self) -> None:
        try:
            from hama.asr import ASRModel  # type: ignore[import-untyped]  # it has no type information

            self._model = ASRModel()
        except ImportError as error:
            raise ModelUnavailable("hama is not installed: pip install hama") from error
        except (OSError, RuntimeError) as error:
            raise ModelUnavailable(f"hama does not run on this machine: {error}") from error
        self.vocabulary: list[str] = self._model.decoder_tokens
        self.blank = int(self._model.blank_id)

    def log_probs(self, audio: Tensor, sample_rate: int) -> Tensor:
        samples = resample(audio, sample_rate, RATE).clamp(-1, 1).numpy()
        if len(samples) < self._MIN_SAMPLES:
            return torch.zeros(0, len(self.vocabulary))
        inputs = {"waveform": samples[None], "waveform_lengths": np.array([len(samples)])}
        log_probs, lengths = self._model.session.run(["log_probs", "out_lengths"], inputs)
        return torch.from_numpy(np.array(log_probs[0][: int(np.ravel(lengths)[0])], dtype=np.float32))

    def spell(self, phones: str) -> str:
        for theirs, own in self._SPELLING:
            phones = phones.replace(theirs, own)
        return phones

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "packages": package_versions("hama")}


def load_phonemes(kind: PhonemeKind, model: str | None, device: str) -> PhonemeRecognizer:
    """Loads a phoneme recognizer; model: local directory or hub repository of `wav2vec2`, None = its default.

    Raises:
        ModelUnavailable: package or weights are missing; the message says why in one line.
    """
    return Hama() if kind is PhonemeKind.hama else CtcPhonemes(model, device)
