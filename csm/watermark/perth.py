"""Perth of Resemble AI: a small network that shifts magnitudes below 2 kHz of a spectrogram. MIT, weights in the wheel.

Perth, "PERceptual THreshold" (https://github.com/resemble-ai/Perth), package resemble-perth. It carries no message: its
detector says only whether the mark is there.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from io import StringIO
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from csm.audio import resample
from csm.watermark.base import WatermarkUnavailable
from csm.watermark.streaming import OverlapStream

NEEDED = ("perth", "librosa", "torchaudio", "scipy", "yaml")  # modules; the wheel names none of its dependencies
REMEDY = "pip install 'csm-train[watermark]'"
RATE = 32_000  # Hz of its network
HOP = 320  # samples between two frames of its spectrogram, whose windows have 2048
SHORTEST = 8 * HOP
"""Samples that a spectrogram needs: its first window is mirrored at the beginning. Shorter audio is padded."""

REACH = 1024 + 15 * HOP + 1024 + HOP
"""Samples on either side on which the mark depends: half a window of analysis, 5 convolutions over 7 frames, half a
window of synthesis; one hop more for the filters that convert sample rates."""

PIECE_SECONDS = 30
"""Longer audio is marked in pieces, as a stream is, to bound memory."""


class Perth:
    """Loads nothing before it is first used."""

    name = "perth"

    def __init__(self) -> None:
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise WatermarkUnavailable(f"Perth lacks {', '.join(missing)}: {REMEDY}")

    @cached_property
    def _network(self) -> Any:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), _pkg_resources():  # it prints as it loads
            warnings.simplefilter("ignore")  # of deprecated imports
            import perth

            if perth.PerthImplicitWatermarker is None:
                raise WatermarkUnavailable(f"Perth does not import, see python -c 'import perth.perth_net': {REMEDY}")
            return perth.PerthImplicitWatermarker()

    def embed(self, samples: Tensor, rate: int) -> Tensor:
        if len(samples) <= PIECE_SECONDS * rate:
            return self._embed(samples, rate)
        stream = self.stream(rate)
        marked = [stream.push(piece) for piece in samples.split(PIECE_SECONDS * rate)]
        return torch.cat([*marked, stream.flush()])

    def stream(self, rate: int) -> OverlapStream:
        """Delays by 0.23 s. Equal to `embed` up to rounding, but for digital silence (see docs/watermark.md)."""
        reach = math.ceil(REACH * rate / RATE)
        grid = _grid(rate)
        return OverlapStream(lambda samples: self._embed(samples, rate), reach + grid, reach, grid)

    @torch.inference_mode()
    def detect(self, samples: Tensor, rate: int) -> float:
        if not samples.any():
            return 0.0  # its mean over frames that are not silent would divide by zero
        audio = _padded(resample(samples, rate, RATE), SHORTEST)
        return float(self._network.get_watermark(audio.numpy(), RATE, round=False))

    @torch.inference_mode()
    def _embed(self, samples: Tensor, rate: int) -> Tensor:
        """Marks audio that begins on the grid. Padded to whole frames: the network drops what is left of one."""
        if not samples.any():
            return samples
        grid = _grid(rate)
        length = max(math.ceil(len(samples) / grid) * grid, math.ceil(SHORTEST * rate / RATE / grid) * grid)
        audio = resample(_padded(samples, length), rate, RATE)
        marked = torch.from_numpy(self._network.apply_watermark(audio.numpy(), RATE))
        return _padded(resample(marked, RATE, rate)[: len(samples)], len(samples))


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """Stands in for pkg_resources, which setuptools has no more since 82: Perth 1.0 uses one of its functions."""
    if find_spec("pkg_resources") is not None:
        yield
        return
    module = ModuleType("pkg_resources")
    vars(module)["resource_filename"] = lambda package, name: str(files(package) / name)
    sys.modules["pkg_resources"] = module
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _grid(rate: int) -> int:
    """Samples at `rate` that are a whole number of hops of the network: one hop at 8, 16, 24, 44.1 and 48 kHz."""
    return rate // math.gcd(rate, RATE // HOP)


def _padded(samples: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(samples, (0, max(0, length - len(samples))))
