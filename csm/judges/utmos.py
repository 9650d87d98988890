"""UTMOS: an estimated rating of naturalness, by the strong learner of the VoiceMOS Challenge 2022.

Saeki et al., "UTMOS: UTokyo-SaruLab System for VoiceMOS Challenge 2022" (Interspeech 2022). Model and converted weights
are those of the package utmos-pytorch, which fetches the weights from the hub.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from csm.audio import resample
from csm.files import sha256_of
from csm.judges.hub import ModelUnavailable
from csm.provenance import package_versions

RATE = 16_000  # Hz
_SHORTEST = 400  # samples: what the encoder needs for a frame


class Utmos:
    """A rating from 1 (bad) to 5 (excellent); None for silence and for audio of less than 25 ms.

    Raises:
        ModelUnavailable: the package is not installed, or its weights can neither be fetched nor be loaded.
    """

    name = "UTMOS"
    values: tuple[str, ...] = ("utmos",)

    def __init__(self, device: str = "cpu", weights: Path | None = None) -> None:
        """weights: a file of the package's layout; None: the hub's."""
        try:
            from utmos_pytorch import UTMOSScoreTorch
            from utmos_pytorch.utils import download_utmos_ckpt
            from utmos_pytorch.utmos_torch import UTMOSModel
        except ImportError as error:
            raise ModelUnavailable("UTMOS is not installed: pip install utmos-pytorch") from error
        try:
            path = weights or download_utmos_ckpt()
        except (HfHubHTTPError, OSError) as error:
            raise ModelUnavailable(
                "UTMOS's weights are not in the hub's local cache, and cannot be fetched from the hub "
                "(Blinorot/UTMOS-PyTorch)"
            ) from error
        try:
            found = torch.load(path, map_location="meta", mmap=True, weights_only=True).keys()
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise ModelUnavailable(f"{path} cannot be read as UTMOS's weights: is it damaged?") from error
        with torch.device("meta"):
            expected = UTMOSModel().state_dict().keys()
        if found != expected:  # the package loads whatever fits, and keeps random weights for the rest
            raise ModelUnavailable(f"{path} holds other weights than UTMOS's: {sorted(found ^ expected)[0]} differs")
        self._model = UTMOSScoreTorch(str(path), device)
        self._device, self._sha256 = device, sha256_of(path)

    @torch.inference_mode()
    def measure(self, audio: Tensor, sample_rate: int) -> dict[str, float | None]:
        """The rating of mono float32 `audio [num_samples]`, which is heard alone: padding changes ratings."""
        clip = resample(audio, sample_rate, RATE)
        if len(clip) < _SHORTEST or not clip.any():
            return {"utmos": None}
        return {"utmos": float(self._model.score(clip.to(self._device)))}

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": self._sha256,
            "packages": package_versions("utmos-pytorch", "torch"),
        }
