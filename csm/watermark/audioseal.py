"""AudioSeal of Meta: a mark below 8 kHz that carries 16 bits, and a detector that finds it sample by sample. MIT.

San Roman et al. 2024, "Proactive Detection of Voice Cloning with Localized Watermarking". The package is audioseal, 0.2
or later; its weights come from the hub. The causal generator is used, so that streams need no lookahead.
"""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from csm.audio import resample
from csm.watermark.base import WatermarkUnavailable
from csm.watermark.streaming import OverlapStream

RATE = 16_000  # Hz of its training
MESSAGE = 0b0100_0011_0101_0011  # "CS"
BITS = 16
SHORTEST = 640  # two of its frames
CONTEXT_SECONDS = 1.0
"""Audio before a piece that is marked again with it. The generator's LSTM has seen less than in the whole file."""


class AudioSeal:
    """Weights are fetched, or read from the package's cache, when it is first used."""

    name = "audioseal"

    def __init__(self) -> None:
        if find_spec("audioseal") is None:
            raise WatermarkUnavailable("AudioSeal is not installed: pip install audioseal")
        self._message = torch.tensor([[MESSAGE >> bit & 1 for bit in range(BITS)]])

    @cached_property
    def _generator(self) -> Any:
        return self._load("load_generator", "audioseal_wm_streaming")

    @cached_property
    def _detector(self) -> Any:
        return self._load("load_detector", "audioseal_detector_streaming")

    def _load(self, loader: str, card: str) -> Any:
        package = import_module("audioseal").AudioSeal
        try:
            return getattr(package, loader)(card, nbits=BITS).eval()
        except (OSError, RuntimeError) as error:  # URLError is an OSError, its own ModelLoadError a RuntimeError
            reason = str(error).splitlines()[0]
            raise WatermarkUnavailable(f"{card} does not load, from its cache or the hub: {reason}") from error

    @torch.inference_mode()
    def embed(self, samples: Tensor, rate: int) -> Tensor:
        if not len(samples):
            return samples
        audio = resample(samples, rate, RATE)
        audio = torch.nn.functional.pad(audio, (0, max(0, SHORTEST - len(audio))))
        mark = self._generator.get_watermark(audio[None, None], message=self._message)[0, 0]
        mark = resample(mark, RATE, rate)[: len(samples)]
        return samples + torch.nn.functional.pad(mark, (0, len(samples) - len(mark)))

    def stream(self, rate: int) -> OverlapStream:
        """Not exactly that of `embed`, see `CONTEXT_SECONDS`. The lookahead is that of converting sample rates."""
        grid = rate // 50  # a frame of its encoder
        return OverlapStream(lambda samples: self.embed(samples, rate), int(CONTEXT_SECONDS * rate), grid, grid)

    @torch.inference_mode()
    def detect(self, samples: Tensor, rate: int) -> float:
        """The detector's share of marked samples; 0 where the message is another one."""
        if not samples.any():
            return 0.0
        audio = resample(samples, rate, RATE)
        audio = torch.nn.functional.pad(audio, (0, max(0, SHORTEST - len(audio))))
        confidence, message = self._detector.detect_watermark(audio[None, None])
        wrong = int((message.round().long() != self._message).sum())
        return float(confidence) if wrong <= 2 else 0.0
