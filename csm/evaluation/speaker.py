"""Speaker embedders: how alike two recordings sound as voices.

The similarity is the cosine of two embeddings. Its scale belongs to the embedder, so every number is printed with the
embedder's name. None of these is the "SIM" of published tables, which comes from a WavLM-large model fine-tuned for
verification by the authors of the seed-tts-eval protocol; the name is not used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SpeakerKind
from csm.data.folder import sha256_of
from csm.evaluation.hub import EvaluatorUnavailable, fetch_model
from csm.provenance import package_versions

RATE = 16_000  # Hz, of both embedders
MIN_SECONDS = 0.4
"""Less speech than this says nothing about a voice: it gets no embedding, and the report counts it."""


class SpeakerEmbedder(Protocol):
    """A loaded speaker embedding model."""

    name: str

    def embed(self, audio: Tensor, sample_rate: int) -> Tensor | None:
        """Unit-length float32 `[D]` of mono `audio [num_samples]`; None if it holds too little speech."""
        ...

    def describe(self) -> dict[str, Any]:
        """Model, weights and package versions."""
        ...


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two unit vectors `[D]`."""
    return float(a @ b)


class Resemblyzer:
    """GE2E speaker encoder of the resemblyzer package (weights inside), after its own silence trimming.

    Same-voice recordings typically lie between 0.7 and 0.95 and different voices between 0.5 and 0.75, so it can tell
    a broken voice from an intact one but cannot rank good systems.
    """

    name = "resemblyzer"

    def __init__(self, model: str | None, device: str) -> None:
        try:
            import resemblyzer
        except ImportError as error:
            raise EvaluatorUnavailable("resemblyzer is not installed: pip install resemblyzer") from error
        if model is not None:
            raise EvaluatorUnavailable("resemblyzer has only its built-in weights: leave eval.speaker_model unset")
        self._preprocess = resemblyzer.preprocess_wav
        self._encoder = resemblyzer.VoiceEncoder(device, verbose=False)
        self._weights_sha256 = sha256_of(Path(resemblyzer.__file__).with_name("pretrained.pt"))

    def embed(self, audio: Tensor, sample_rate: int) -> Tensor | None:
        samples = resample(audio, sample_rate, RATE).numpy()
        if not np.any(samples):
            return None  # its loudness normalization would divide by zero
        peak = float(np.abs(samples).max())
        speech = self._preprocess(samples / max(1.0, peak))  # it converts to 16 bits without limiting
        if len(speech) < MIN_SECONDS * RATE:
            return None
        return torch.nn.functional.normalize(torch.from_numpy(self._encoder.embed_utterance(speech)).float(), dim=0)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "preprocessing": f"{RATE} Hz, silence trimmed (webrtcvad), loudness raised to -30 dBFS",
            "packages": package_versions("resemblyzer", "librosa"),
        }


class WavLM:
    """A WavLM x-vector model through transformers, float32, one whole recording at a time.

    Padding would enter the statistics pooling, so nothing is batched.
    """

    DEFAULT = "microsoft/wavlm-base-plus-sv"

    def __init__(self, model: str | None, device: str) -> None:
        from transformers import AutoFeatureExtractor, WavLMForXVector

        source = model or self.DEFAULT
        folder = fetch_model(source)
        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._model, loading = WavLMForXVector.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise EvaluatorUnavailable(f"{source} does not load as a WavLM x-vector model: {reason}") from error
        # Missing weights would silently stay random, and a random embedder still returns plausible cosines.
        missing = [key for key in loading["missing_keys"] if not key.startswith("objective.")]
        if missing:
            raise EvaluatorUnavailable(f"{source} lacks weights of a WavLM x-vector model, e.g. {missing[0]}")
        self._model.to(device).eval()
        self._device, self._source, self._snapshot = device, source, folder.name
        self.name = Path(source).name

    @torch.inference_mode()
    def embed(self, audio: Tensor, sample_rate: int) -> Tensor | None:
        samples = resample(audio, sample_rate, RATE)
        if len(samples) < MIN_SECONDS * RATE:
            return None
        inputs = self._extractor(samples.numpy(), sampling_rate=RATE, return_tensors="pt").to(self._device)
        return torch.nn.functional.normalize(self._model(**inputs).embeddings[0].float().cpu(), dim=0)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": self._source,
            "revision": self._snapshot,
            "preprocessing": f"{RATE} Hz, whole file, float32",
            "packages": package_versions("transformers", "torch"),
        }


def load_embedder(kind: SpeakerKind, model: str | None, device: str) -> SpeakerEmbedder:
    """Loads an embedder; `model` is a local directory or hub repository (WavLM only), None = the default.

    Raises:
        EvaluatorUnavailable: package or weights are missing.
    """
    backend = {SpeakerKind.resemblyzer: Resemblyzer, SpeakerKind.wavlm: WavLM}[kind]
    return backend(model, device)
