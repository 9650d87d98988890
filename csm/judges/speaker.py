"""Speaker encoders, which tell how similar the voices of two recordings, or two stretches of one, are.

The similarity is the cosine of two embeddings. Its scale belongs to the embedder, so every number is printed with the
embedder's name. None of these is the "SIM" of published tables, which comes from the WavLM-large model of
csm/judges/wavlm_ecapa.py; the name is not used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SpeakerKind
from csm.files import sha256_of
from csm.judges.hub import ModelUnavailable, fetch_model
from csm.provenance import package_versions

RATE = 16_000  # Hz, of both embedders
MIN_SECONDS = 0.4
"""Less speech than this says nothing about a voice: it gets no embedding, and the report counts it."""

# Of resemblyzer: frames of its spectrogram per second, dimension of an embedding, windows encoded at once, and the mean
# square (-30 dBFS) that quiet speech is raised to, as in the encoder's training.
FRAMES_PER_SECOND = 100
_SAMPLES_IN_FRAME = RATE // FRAMES_PER_SECOND
DIM = 256
_BATCH = 64
_LOUDNESS = 1e-3


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
    """GE2E speaker encoder of the package resemblyzer, which contains its weights.

    Wan et al. 2018, "Generalized end-to-end loss for speaker verification". Same-voice recordings typically lie between
    0.7 and 0.95 and different voices between 0.5 and 0.75, so it can tell a broken voice from an intact one but cannot
    rank good systems.

    Raises:
        ModelUnavailable: the package is not installed.
    """

    name = "resemblyzer"

    def __init__(self, device: str) -> None:
        try:
            import resemblyzer
        except ImportError as error:
            raise ModelUnavailable(
                "resemblyzer is not installed: pip install --no-deps resemblyzer and "
                "pip install librosa webrtcvad-wheels"
            ) from error
        self._package, self._device = resemblyzer, device
        self._encoder = resemblyzer.VoiceEncoder(device, verbose=False)

    def embed(self, audio: Tensor, sample_rate: int) -> Tensor | None:
        samples = resample(audio, sample_rate, RATE).numpy()
        if not np.any(samples):
            return None  # its loudness normalization would divide by zero
        peak = float(np.abs(samples).max())
        # after its own silence trimming, which converts to 16 bits without limiting
        speech = self._package.preprocess_wav(samples / max(1.0, peak))
        if len(speech) < MIN_SECONDS * RATE:
            return None
        return torch.nn.functional.normalize(torch.from_numpy(self._encoder.embed_utterance(speech)).float(), dim=0)

    def windows(self, samples: np.ndarray, sizes: Sequence[int], hop: int) -> list[list[np.ndarray]]:
        """The input of `embed_windows` for each of the sizes: spectrograms, float32 [size, 40], `hop` frames apart.

        There are 100 frames a second; of less speech than a window, all is one shorter window. Each window is raised to
        one loudness by itself: of two people in one room, one may be far from the microphone.

        samples: speech, float32 [N] at 16 kHz
        """
        mel = self._package.wav_to_mel_spectrogram(samples)  # of power, so that loudness is a factor
        energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])

        def window(first: int, size: int) -> np.ndarray:
            begin, end = (min(frame * _SAMPLES_IN_FRAME, len(samples)) for frame in (first, first + size))
            power = float(energy[end] - energy[begin]) / max(1, end - begin)
            return mel[first : first + size] * (max(1.0, _LOUDNESS / power) if power else 1.0)

        return [[window(first, size) for first in range(0, max(1, len(mel) - size + 1), hop)] for size in sizes]

    @torch.inference_mode()
    def embed_windows(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """Unit-length float32 [n, 256] of spectrogram windows, all of the same number of frames."""
        found = [np.zeros((0, DIM), np.float32)]
        for first in range(0, len(windows), _BATCH):
            batch = torch.from_numpy(np.stack(windows[first : first + _BATCH])).to(self._device)
            found.append(self._encoder(batch).cpu().numpy())
        return np.concatenate(found)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": sha256_of(Path(self._package.__file__).with_name("pretrained.pt")),
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
            raise ModelUnavailable(f"{source} does not load as a WavLM x-vector model: {reason}") from error
        # Missing weights would silently stay random, and a random embedder still returns plausible cosines.
        missing = [key for key in loading["missing_keys"] if not key.startswith("objective.")]
        if missing:
            raise ModelUnavailable(f"{source} lacks weights of a WavLM x-vector model, e.g. {missing[0]}")
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
    """Loads an embedder.

    model: a local directory or hub repository (wavlm), the published file (wavlm_ecapa), None = the default

    Raises:
        ModelUnavailable: package or weights are missing.
    """
    if kind is SpeakerKind.wavlm:
        return WavLM(model, device)
    if kind is SpeakerKind.wavlm_ecapa:
        from csm.judges.wavlm_ecapa import PUBLISHED_FILE, WavLMEcapa  # transformers takes seconds to import

        return WavLMEcapa(Path(model or PUBLISHED_FILE), device)
    if model is not None:
        raise ModelUnavailable("resemblyzer has only its built-in weights: leave eval.speaker_model unset")
    return Resemblyzer(device)
