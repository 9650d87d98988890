"""SilentCipher of Sony, as in Sesame's release: a message of 5 bytes in a spectrogram at 44.1 kHz, for whole files.

Singh et al. 2024, "SilentCipher: Deep Audio Watermarking". The package on PyPI asks for torch 2.0; a fork without that
pin is SesameAILabs/silentcipher on GitHub. The weights come from the hub.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any, NoReturn

import torch
from torch import Tensor

from csm.watermark.base import WatermarkUnavailable

KEY = (212, 211, 146, 56, 201)
"""The message that Sesame published for CSM, so that their detector finds it. Everybody can write it."""

MESSAGE_SDR = 36  # dB by which the message is fainter than the speech, as in Sesame's release


class SilentCipher:
    """Weights are fetched, or read from the hub's cache, when it is first used."""

    name = "silentcipher"

    def __init__(self) -> None:
        if find_spec("silentcipher") is None:
            raise WatermarkUnavailable(
                "SilentCipher is not installed: pip install git+https://github.com/SesameAILabs/silentcipher"
            )

    @cached_property
    def _model(self) -> Any:
        try:
            with redirect_stdout(StringIO()):
                return import_module("silentcipher").get_model(model_type="44.1k", device="cpu")
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WatermarkUnavailable(f"SilentCipher does not load, from its cache or the hub: {reason}") from error

    def embed(self, samples: Tensor, rate: int) -> Tensor:
        if not samples.any():
            return samples
        with redirect_stdout(StringIO()):
            marked, _ = self._model.encode_wav(
                samples.numpy(), rate, list(KEY), message_sdr=MESSAGE_SDR, calc_sdr=False
            )
        marked = torch.from_numpy(marked).float()[: len(samples)]
        return torch.nn.functional.pad(marked, (0, len(samples) - len(marked)))

    def stream(self, rate: int) -> NoReturn:
        raise ValueError(
            "silentcipher scales by the mean power of whole files, so it cannot mark streams: choose perth"
        )

    def detect(self, samples: Tensor, rate: int) -> float:
        """The share of the file's copies of the message that agree; 0 where the message is not `KEY`."""
        if not samples.any():
            return 0.0
        found = self._model.decode_wav(samples.numpy(), rate, phase_shift_decoding=True)
        if not found["status"] or list(found["messages"][0]) != list(KEY):
            return 0.0
        return float(found["confidences"][0])
