"""Distance of an utterance's prosody from a recording of the same words: pitch, energy and rate.

Both are aligned in time first, by dynamic time warping of their spectral envelopes (13 MFCC); voice and level are taken
out, so that what remains is how the words were said.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from csm.audio import resample
from csm.judges.hub import ModelUnavailable
from csm.provenance import package_versions

RATE = 16_000  # Hz
HOP = 256  # samples, of SwiftF0's frames
SILENCE_DB = 40  # below the loudest frame
VOICED = 0.5  # confidence, as the package's own rule

MIN_SAMPLES = 4 * HOP

Floats = NDArray[np.float64]
Samples = NDArray[np.float32]


class ProsodyDistance:
    """Distances of two utterances of one text; 0: the same prosody.

    f0_distance:      root mean square difference of pitch where both are voiced, semitones, without the mean pitch
    energy_distance:  root mean square difference of level along the alignment, dB, without the mean level
    rate_distance:    octaves between the lengths from the first to the last sound; 1: twice as fast, or half

    Raises:
        ModelUnavailable: SwiftF0 or librosa is not installed.
    """

    name = "SwiftF0, aligned by DTW"
    values: tuple[str, ...] = ("f0_distance", "energy_distance", "rate_distance")

    def __init__(self) -> None:
        try:
            import librosa
            from swift_f0 import SwiftF0
        except ImportError as error:
            raise ModelUnavailable(f"{error.name} is not installed: pip install swift-f0 librosa") from error
        self._librosa, self._model = librosa, SwiftF0(threads=1)

    def measure(self, audio: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
        """`values` of mono float32 `audio [num_samples]` against the recording; without those that are undefined:
        all where one is silent, the pitch's where nothing is voiced in both."""
        clip, true_clip = self._sounding(audio, sample_rate), self._sounding(reference, sample_rate)
        if min(len(clip), len(true_clip)) < MIN_SAMPLES:
            return {}
        found = {"rate_distance": abs(float(np.log2(len(clip) / len(true_clip))))}
        (pitch, level), (true_pitch, true_level) = self._contours(clip), self._contours(true_clip)
        a, b = self._alignment(self._envelope(clip, len(level)), self._envelope(true_clip, len(true_level)))
        both = np.isfinite(pitch[a]) & np.isfinite(true_pitch[b])
        found["energy_distance"] = _rms(level[a] - true_level[b])
        if both.any():
            found["f0_distance"] = _rms(pitch[a][both] - true_pitch[b][both])
        return found

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "packages": package_versions("swift-f0", "librosa", "onnxruntime")}

    def _sounding(self, audio: Tensor, sample_rate: int) -> Samples:
        """From the first to the last sound at RATE."""
        clip = resample(audio, sample_rate, RATE).numpy()
        if not clip.any():
            return clip[:0]
        sounding: Samples = self._librosa.effects.trim(clip, top_db=SILENCE_DB, frame_length=4 * HOP, hop_length=HOP)[0]
        return sounding

    def _contours(self, clip: Samples) -> tuple[Floats, Floats]:
        """Pitch in semitones, NaN where unvoiced, and level in dB at least SILENCE_DB below the loudest frame."""
        frames = self._model.detect(clip, RATE)
        voiced = frames.confidence >= VOICED
        pitch = np.where(voiced, 12 * np.log2(np.maximum(frames.pitch_hz, 1.0)), np.nan).astype(np.float64)
        level = np.maximum(frames.loudness_db, frames.loudness_db.max() - SILENCE_DB).astype(np.float64)
        return pitch, level

    def _envelope(self, clip: Samples, frames: int) -> Samples:
        """13 MFCC of each frame [13, frames], each of mean 0 and variance 1."""
        mfcc = self._librosa.feature.mfcc(y=clip, sr=RATE, n_mfcc=13, n_fft=4 * HOP, hop_length=HOP)[:, :frames]
        scaled: Samples = (mfcc - mfcc.mean(axis=1, keepdims=True)) / (mfcc.std(axis=1, keepdims=True) + 1e-6)
        return scaled

    def _alignment(self, a: Samples, b: Samples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Frames of both that belong together, in order."""
        _, path = self._librosa.sequence.dtw(a, b)
        return path[::-1, 0], path[::-1, 1]


def _rms(difference: Floats) -> float:
    """Root mean square of a difference of contours, whose mean, the voice's or the level's, is taken out."""
    return float(np.std(difference))
