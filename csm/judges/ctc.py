"""Recognizers with a CTC output, through transformers: letters, or phonemes.

They write what they hear frame by frame, without a language model, and so can neither invent a sentence for silence nor
leave one out: a second opinion where Whisper may have hallucinated. Their vocabulary is read from vocab.json; the
tokenizer of phoneme models would need espeak only to exist.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.judges.hub import ModelUnavailable, fetch_model
from csm.judges.recognition import Recognized, check_language
from csm.provenance import package_versions

RATE = 16_000  # Hz, of all such models
LETTERS = "facebook/hubert-large-ls960-ft"
PHONEMES = "facebook/wav2vec2-lv-60-espeak-cv-ft"
"""Phonemes of espeak's English and many other languages; the model of Sesame's homograph test."""

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_MIN_SAMPLES = 400  # of the first frame


class CtcModel:
    """A loaded model, float32, one utterance at a time.

    vocabulary: the symbol of each output; blank: number of the output that writes nothing

    Raises:
        ModelUnavailable: the weights are missing and cannot be fetched, they do not load, or the folder has no
            vocab.json with them.
    """

    def __init__(self, model: str, device: str) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForCTC

        folder = fetch_model(model)
        vocabulary = folder / "vocab.json"
        if not vocabulary.is_file():
            raise ModelUnavailable(f"{model} has no vocab.json, so it is not a CTC recognizer of transformers")
        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._model, loading = AutoModelForCTC.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelUnavailable(f"{model} does not load as a CTC recognizer: {reason}") from error
        missing = [key for key in loading["missing_keys"] if not key.endswith("masked_spec_embed")]  # training's
        if missing:
            raise ModelUnavailable(f"{model} lacks weights of a CTC recognizer, e.g. {missing[0]}")
        numbers = json.loads(vocabulary.read_text(encoding="utf-8"))
        outputs = self._model.config.vocab_size
        if sorted(numbers.values()) != list(range(len(numbers))) or len(numbers) > outputs:
            raise ModelUnavailable(f"{model}: its vocab.json does not number the model's {outputs} outputs")
        self.vocabulary = sorted(numbers, key=numbers.__getitem__)
        self.blank = int(self._model.config.pad_token_id)
        self._model.to(device).eval()
        self._device, self.source, self.snapshot = device, model, folder.name

    @torch.inference_mode()
    def log_probs(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Log-probabilities float32 [T, V] of mono `audio [num_samples]`; T is 0 for less than 25 ms."""
        samples = resample(audio, sample_rate, RATE)
        if len(samples) < _MIN_SAMPLES:
            return torch.zeros(0, len(self.vocabulary))
        inputs = self._extractor(samples.numpy(), sampling_rate=RATE, return_tensors="pt")
        logits = self._model(inputs.input_values.to(self._device)).logits[0]
        return logits[:, : len(self.vocabulary)].float().log_softmax(dim=-1).cpu()

    def greedy(self, log_probs: Tensor) -> list[str]:
        """The most likely symbol of each frame, without repetitions, then without blanks and special symbols."""
        best = [number for number, _ in groupby(log_probs.argmax(dim=-1).tolist())]
        written = [self.vocabulary[number] for number in best if number != self.blank]
        return [symbol for symbol in written if symbol not in SPECIAL]

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.source,
            "revision": self.snapshot,
            "decoding": "greedy CTC, no language model, float32",
            "packages": package_versions("transformers", "torch"),
        }


class CtcRecognizer:
    """English text by a CTC model of letters: a `Recognizer` for `transcribe`, without words' times.

    Raises:
        ModelUnavailable: as `CtcModel`, or the language is another one with the default model.
    """

    def __init__(self, model: str | None, language: str, device: str) -> None:
        if model is None:
            check_language(LETTERS, False, language, "the recognizer's model")
        self._ctc = CtcModel(model or LETTERS, device)
        self._language = language
        self.name = f"{Path(self._ctc.source).name} (CTC, greedy)"

    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        symbols = self._ctc.greedy(self._ctc.log_probs(audio, sample_rate))
        return " ".join("".join(symbols).replace("|", " ").split())

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **self._ctc.describe(), "language": self._language}

    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        raise ModelUnavailable(f"{self.name} detects no language")

    def recognize(self, clips: Sequence[np.ndarray], language: str) -> list[Recognized]:
        raise ModelUnavailable(f"{self.name} does not time words: use a Whisper model")
