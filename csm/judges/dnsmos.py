"""DNSMOS P.835: estimated listener ratings of speech, background and overall quality, 1 (bad) to 5 (excellent).

Reddy, Gopal, Cutler, "DNSMOS P.835: A Non-Intrusive Perceptual Objective Speech Quality Metric to Evaluate Noise
Suppressors" (ICASSP 2022). The model is part of the package speechmos, whose own code is not used: it takes one
window after another, at a hop of 1 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.files import sha256_of
from csm.judges.hub import ModelUnavailable
from csm.provenance import package_versions

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

RATE = 16_000  # Hz, of the model
WINDOW = int(9.01 * RATE)  # samples of the model's input
MIN_HOP_SECONDS = 4.5  # below, windows overlap by more than half: much more work for the same result

LEVEL = 0.5
"""Peak at which `measure` listens."""

_BATCH = 8  # windows
# The model's three outputs are mapped to the scale of the listening tests by these polynomials, highest power first:
# signal, background, overall, as in Microsoft's DNS-Challenge/DNSMOS/dnsmos_local.py.
_FITS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class Dnsmos:
    """The loaded model.

    Args:
        hop_seconds: between windows of audio longer than one; at least 4.5.
        device: "cpu" (one thread, so that results do not depend on the number of threads), "cuda" or "cuda:1".

    Raises:
        ModelUnavailable: its packages are not installed, or onnxruntime does not reach the device.
    """

    name = "DNSMOS P.835"
    values: tuple[str, ...] = ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl")

    def __init__(self, hop_seconds: float, device: str = "cpu") -> None:
        weights = _model_file()
        import onnxruntime  # an optional dependency

        self.hop = round(hop_seconds * RATE)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        provider, provider_options = provider_of(device)
        if provider not in onnxruntime.get_available_providers():
            raise ModelUnavailable(
                f"DNSMOS on {device}: onnxruntime offers no {provider}; install onnxruntime-gpu, or use cpu"
            )
        self._session = onnxruntime.InferenceSession(
            weights, options, providers=[provider], provider_options=[provider_options]
        )
        check_provider(self._session, provider, device)

    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Signal, background and overall of clips (float32 [N] at 16 kHz), each the mean of its windows: [clips, 3].

        Windows of all clips share batches.
        """
        windows = [split(clip, self.hop) for clip in clips]
        flat = [window for of_clip in windows for window in of_clip]
        scores = np.concatenate(
            [self._rate(np.stack(flat[first : first + _BATCH])) for first in range(0, len(flat), _BATCH)]
        )
        ends = np.cumsum([len(of_clip) for of_clip in windows])
        return np.stack([part.mean(axis=0) for part in np.split(scores, ends[:-1])])

    def measure(self, audio: Tensor, sample_rate: int) -> dict[str, float | None]:
        """See csm/judges/measures.py. The ratings fall with the level, so audio is brought to a peak of 0.5 before."""
        clip = resample(audio, sample_rate, RATE).numpy()
        peak = float(np.abs(clip).max(initial=0.0))
        if not peak:
            return dict.fromkeys(self.values)
        (rating,) = self([(clip * (LEVEL / peak)).astype(np.float32)])
        return dict(zip(self.values, rating.tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": sha256_of(Path(_model_file())),
            "preprocessing": f"{RATE} Hz, peak {LEVEL}, hop {self.hop / RATE:.2f} s",
            "packages": package_versions("speechmos", "onnxruntime"),
        }

    def _rate(self, windows: np.ndarray) -> np.ndarray:
        """Float64 [B, 3] of windows float32 [B, WINDOW]."""
        (raw,) = self._session.run(None, {"input_1": windows})
        return np.stack([np.polyval(fit, raw[:, i].astype(np.float64)) for i, fit in enumerate(_FITS)], axis=1)


def provider_of(device: str) -> tuple[str, dict[str, Any]]:
    """ONNX Runtime's name and options for a torch device."""
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return "CPUExecutionProvider", {}
    return "CUDAExecutionProvider", {"device_id": wanted.index or 0}


def check_provider(session: InferenceSession, provider: str, device: str) -> None:
    """Raises ModelUnavailable if ONNX Runtime took the CPU because CUDA's libraries do not load, of which it only logs
    a line."""
    if provider not in session.get_providers():
        raise ModelUnavailable(
            f"DNSMOS on {device}: onnxruntime cannot load its {provider}, see its log above; install the CUDA and "
            "cuDNN that this onnxruntime-gpu was built for, or use cpu"
        )


def split(clip: np.ndarray, hop: int) -> list[np.ndarray]:
    """Windows of a clip: one about every `hop` samples, the first at its start and, of several, the last at its end.

    A clip that is shorter than a window is repeated to fill it, as in the original.
    """
    if len(clip) < WINDOW:
        return [np.resize(clip, WINDOW)]
    windows = 1 + round((len(clip) - WINDOW) / hop)
    starts = np.linspace(0, len(clip) - WINDOW, windows).astype(int)
    return [clip[start : start + WINDOW] for start in starts]


def _model_file() -> str:
    package = find_spec("speechmos")
    if package is None or package.origin is None or find_spec("onnxruntime") is None:
        raise ModelUnavailable("DNSMOS needs the packages speechmos and onnxruntime: pip install speechmos onnxruntime")
    return str(Path(package.origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx")
