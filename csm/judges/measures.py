"""Measures of one utterance that need neither its text nor another recording: quality, prosody, pauses.

    dnsmos      DNSMOS P.835                                            csm/judges/dnsmos.py
    distillmos  DistillMOS                                              here
    prosody     pitch, its spread, voiced ratio, energy, by SwiftF0     here
    pauses      silence before, in and after the speech, by Silero      here
    utmos       UTMOS                                                   csm/judges/utmos.py

The weights of all but UTMOS are part of their packages. None is a verdict on its own: DNSMOS and DistillMOS were made
for recordings and codecs, and saturate on synthetic speech.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.judges.dnsmos import Dnsmos
from csm.judges.hub import ModelUnavailable
from csm.judges.silero import Silero, speech_spans
from csm.judges.utmos import Utmos
from csm.languages import letters
from csm.provenance import package_versions

RATE = 16_000  # Hz, of all of them


class AudioMeasure(Protocol):
    """A loaded measure.

    values: names of what it measures
    """

    name: str
    values: tuple[str, ...]

    def measure(self, audio: Tensor, sample_rate: int) -> dict[str, float | None]:
        """`values` of mono float32 `audio [num_samples]`; None where the audio, of any length, does not define one."""
        ...

    def describe(self) -> dict[str, Any]:
        """Model, weights and package versions."""
        ...


class DistillMos:
    """DistillMOS: an estimated rating of overall quality, 1 (bad) to 5 (excellent).

    Stahl and Gamper, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
    Assessment" (ICASSP 2025). It brings audio to one level itself.

    Raises:
        ModelUnavailable: the package is not installed.
    """

    name = "DistillMOS"
    values: tuple[str, ...] = ("distillmos",)

    def __init__(self, device: str = "cpu") -> None:
        try:
            from distillmos import ConvTransformerSQAModel
        except ImportError as error:
            raise ModelUnavailable("DistillMOS is not installed: pip install distillmos xls-r-sqa") from error
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            self._model = ConvTransformerSQAModel().to(device).eval()
        self._device = device

    @torch.inference_mode()
    def measure(self, audio: Tensor, sample_rate: int) -> dict[str, float | None]:
        clip = resample(audio, sample_rate, RATE)
        if not clip.any():
            return {"distillmos": None}
        return {"distillmos": float(self._model(clip[None].to(self._device)))}

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "packages": package_versions("distillmos", "xls-r-sqa", "torch")}


class Prosody:
    """Pitch and energy of the voiced frames (16 ms).

    f0_mean:       mean pitch in semitones above 100 Hz, the scale on which intervals are heard
    f0_std:        its standard deviation in semitones: what makes speech lively or flat
    f0_range:      from its 5th to its 95th percentile, in semitones
    voiced_ratio:  share of all frames
    energy_mean:   mean level in dBFS
    energy_std:    its standard deviation in dB

    Raises:
        ModelUnavailable: the package is not installed.
    """

    name = "SwiftF0"
    values: tuple[str, ...] = ("f0_mean", "f0_std", "f0_range", "voiced_ratio", "energy_mean", "energy_std")
    _VOICED = 0.5  # confidence, as the package's own rule

    def __init__(self) -> None:
        try:
            from swift_f0 import SwiftF0
        except ImportError as error:
            raise ModelUnavailable("SwiftF0 is not installed: pip install swift-f0") from error
        self._model = SwiftF0(threads=1)

    def measure(self, audio: Tensor, sample_rate: int) -> dict[str, float | None]:
        clip = resample(audio, sample_rate, RATE).numpy()
        found: dict[str, float | None] = dict.fromkeys(self.values)
        if not len(clip):
            return found
        frames = self._model.detect(clip, RATE)
        voiced = frames.confidence >= self._VOICED
        found["voiced_ratio"] = float(voiced.mean())
        if voiced.any():
            semitones, level = 12 * np.log2(frames.pitch_hz[voiced] / 100), frames.loudness_db[voiced]
            low, high = np.percentile(semitones, (5, 95))
            found |= {"f0_mean": float(semitones.mean()), "f0_std": float(semitones.std())}
            found |= {"f0_range": float(high - low)}
            found |= {"energy_mean": float(level.mean()), "energy_std": float(level.std())}
        return found

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "packages": package_versions("swift-f0", "onnxruntime")}


class Pauses:
    """Silence before, in and after the speech, in seconds; None for audio without speech.

    A pause is silence of 0.2 s or more between speech; below that lie the closures of plosives.

    Raises:
        ModelUnavailable: silero-vad is not installed.
    """

    name = "Silero VAD"
    values: tuple[str, ...] = (
        "leading_silence",
        "trailing_silence",
        "pauses",
        "pause_seconds",
        "longest_pause",
        "speech_seconds",
    )
    _PAUSE = 0.2

    def __init__(self) -> None:
        self._model = Silero()

    def measure(self, audio: Tensor, sample_rate: int) -> dict[str, float | None]:
        clip = resample(audio, sample_rate, RATE).numpy()
        found: dict[str, float | None] = dict.fromkeys(self.values)
        if not len(clip):
            return found
        spans = speech_spans(
            self._model.stream().feed(clip),
            len(clip),
            threshold=0.5,
            min_speech_seconds=0.1,
            min_silence_seconds=self._PAUSE,
            pad_seconds=0.0,
        )
        if not spans:
            return found
        gaps = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
        return {
            "leading_silence": spans[0][0],
            "trailing_silence": len(clip) / RATE - spans[-1][1],
            "pauses": float(len(gaps)),
            "pause_seconds": float(sum(gaps)),
            "longest_pause": max(gaps, default=0.0),
            "speech_seconds": sum(end - start for start, end in spans),
        }

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "pause": f"{self._PAUSE} s", "packages": package_versions("silero-vad")}


def speaking_rate(text: str, pauses: dict[str, float | None]) -> dict[str, float | None]:
    """Letters a second from the first to the last sound (`speaking_rate`), and of speech alone (`articulation_rate`).

    text: what was to be said; pauses: as `Pauses` measures them.
    """
    speech, silence = pauses["speech_seconds"], pauses["pause_seconds"]
    if not speech or silence is None:
        return {"speaking_rate": None, "articulation_rate": None}
    return {"speaking_rate": letters(text) / (speech + silence), "articulation_rate": letters(text) / speech}


MEASURES: dict[str, Callable[[str], AudioMeasure]] = {
    "dnsmos": lambda device: Dnsmos(hop_seconds=4.5, device=device),
    "distillmos": DistillMos,
    "prosody": lambda device: Prosody(),
    "pauses": lambda device: Pauses(),
    "utmos": Utmos,
}
"""Loads a measure by its name, for a device. They raise ModelUnavailable, whose message says why it cannot run."""
