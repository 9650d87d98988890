"""How short stretches of speech sound as voices: the GE2E speaker encoder of resemblyzer, weights inside the package.

Wan et al. 2018, "Generalized end-to-end loss for speaker verification".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data_prep.stages.base import ModelUnavailable

FRAMES_PER_SECOND = 100
DIM = 256
_BATCH = 64
_LOUDNESS = -30.0  # dBFS that quiet speech is raised to, as in the encoder's training


class Voices:
    """The loaded encoder. Raises ModelUnavailable if the package is not installed."""

    def __init__(self, device: str) -> None:
        try:
            from resemblyzer import VoiceEncoder, normalize_volume, wav_to_mel_spectrogram
        except ImportError as error:
            raise ModelUnavailable(
                "resemblyzer is not installed: pip install --no-deps resemblyzer and "
                "pip install librosa webrtcvad-wheels, or set diarize.backend=single"
            ) from error
        self._encoder = VoiceEncoder(device, verbose=False)
        self._spectrogram, self._normalize = wav_to_mel_spectrogram, normalize_volume
        self._device = device

    def spectrogram(self, samples: np.ndarray) -> np.ndarray:
        """What `embed` takes: float32 [frames, 40], 100 a second, of speech (16 kHz) brought to one loudness."""
        if np.any(samples):
            samples = self._normalize(samples, _LOUDNESS, increase_only=True)
        return self._spectrogram(samples)

    @torch.inference_mode()
    def embed(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """Unit-length float32 [n, 256] of spectrogram windows, all of the same number of frames."""
        found = [np.zeros((0, DIM), np.float32)]
        for first in range(0, len(windows), _BATCH):
            batch = torch.from_numpy(np.stack(windows[first : first + _BATCH])).to(self._device)
            found.append(self._encoder(batch).cpu().numpy())
        return np.concatenate(found)
