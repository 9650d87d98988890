"""Log-mel analysis of 24 kHz speech and its inversion by Griffin-Lim: the signal processing of the spectral codec.

Frame j of a clip is centered on sample j * HOP + HOP / 2, so a clip of n * HOP samples has exactly n frames, and the
outside of the clip counts as silence: appending zeros to a clip changes none of its frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_RATE = 24_000
HOP = 240  # 10 ms
WINDOW = 1024  # samples of the Hann window, and FFT length
NUM_MELS = 80
LOG_FLOOR = math.log(0.05)
"""Quieter mel magnitudes are set to this: background noise should not use up codes. Loud speech reaches 4."""

MARGIN = (WINDOW - HOP) // 2
"""Samples that a window reaches beyond its hop, on each side."""

_MEL_FIT_STEPS = 24
_MOMENTUM = 0.99


def mel_filterbank(device: torch.device | str = "cpu") -> Tensor:
    """Triangular filters [NUM_MELS, WINDOW // 2 + 1] float32, 0 Hz to the Nyquist frequency, each summing to 1.

    Mel scale of O'Shaughnessy (1987): 2595 * log10(1 + hertz / 700).
    """
    nyquist = SAMPLE_RATE / 2
    mel_edges = torch.linspace(0, 2595 * math.log10(1 + nyquist / 700), NUM_MELS + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel_edges / 2595) - 1)
    bins = torch.linspace(0, nyquist, WINDOW // 2 + 1, dtype=torch.float64)
    lower, center, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - lower) / (center - lower), (upper - bins) / (upper - center)).clamp_min(0)
    return (triangles / triangles.sum(dim=1, keepdim=True)).float().to(device)


def add_margins(audio: Tensor) -> Tensor:
    """Audio [N] -> [MARGIN + N + MARGIN], with silence on both sides."""
    return torch.nn.functional.pad(audio, (MARGIN, MARGIN))


def stft(audio: Tensor) -> Tensor:
    """Audio [MARGIN + N + MARGIN], N a multiple of HOP -> complex64 [N / HOP, WINDOW // 2 + 1]."""
    window = torch.hann_window(WINDOW, device=audio.device)
    return torch.fft.rfft(audio.unfold(0, WINDOW, HOP) * window)


def istft(spectrum: Tensor) -> Tensor:
    """Least-squares inverse of `stft`, without the margins: complex64 [F, WINDOW // 2 + 1] -> float32 [F * HOP]."""
    window = torch.hann_window(WINDOW, device=spectrum.device)
    frames = torch.fft.irfft(spectrum, n=WINDOW) * window
    weights = (window**2).expand(len(spectrum), -1)
    size = (1, (len(spectrum) - 1) * HOP + WINDOW)
    both = torch.stack([frames, weights]).transpose(1, 2)
    audio, weight = torch.nn.functional.fold(both, size, (1, WINDOW), stride=(1, HOP)).flatten(1)
    return (audio / weight.clamp_min(1e-8))[MARGIN:-MARGIN]


def log_mel(magnitudes: Tensor, filterbank: Tensor) -> Tensor:
    """STFT magnitudes [F, WINDOW // 2 + 1] -> natural log of mel magnitudes [F, NUM_MELS], at least LOG_FLOOR."""
    return (magnitudes @ filterbank.T).clamp_min(math.exp(LOG_FLOOR)).log()


def griffin_lim(logs: Tensor, filterbank: Tensor, iterations: int, seed: int) -> Tensor:
    """Finds audio [F * HOP] whose log-mel spectrogram is close to `logs` [F, NUM_MELS].

    Phases begin at random, fixed by `seed`. Same input, same output.
    """
    magnitudes = linear_magnitudes(logs, filterbank)
    return istft(magnitudes * find_phases(magnitudes, start_phases(magnitudes, seed), iterations))


def linear_magnitudes(logs: Tensor, filterbank: Tensor) -> Tensor:
    """Log-mel frames [F, NUM_MELS] -> STFT magnitudes [F, WINDOW // 2 + 1] that have them.

    By multiplicative non-negative least squares (Lee and Seung, 2001).
    """
    mels = (logs.exp() - math.exp(LOG_FLOOR)).clamp_min(0)  # so that the floor itself is silence, not hiss
    gram = filterbank.T @ filterbank
    target = mels @ filterbank
    magnitudes = target.clone()
    for _ in range(_MEL_FIT_STEPS):
        magnitudes = magnitudes * target / (magnitudes @ gram).clamp_min(1e-8)
    return magnitudes


def start_phases(magnitudes: Tensor, seed: int) -> Tensor:
    """Random phases for `magnitudes`, as complex64 of absolute value 1; the same for a seed and a shape."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(magnitudes.shape, generator=generator).to(magnitudes.device) * (2 * math.pi)
    return torch.polar(torch.ones_like(angles), angles)


def find_phases(magnitudes: Tensor, phases: Tensor, iterations: int, before: Tensor | None = None) -> Tensor:
    """Phases with which the windows of a spectrogram agree where they overlap, begun at `phases`.

    Fast Griffin-Lim (Perraudin, Balazs and Sondergaard, 2013).

    magnitudes: float32 [F, WINDOW // 2 + 1]
    phases:     complex64 [F, WINDOW // 2 + 1], absolute value 1; so are those returned
    before:     complex64 [P, WINDOW // 2 + 1], windows before these that stay as they are
    """
    start = 0 if before is None else len(before)
    previous = torch.zeros_like(phases)
    for _ in range(iterations):
        spectrum = magnitudes * phases
        if before is not None:
            spectrum = torch.cat([before, spectrum])
        consistent = stft(add_margins(istft(spectrum)))[start:]
        phases = consistent + _MOMENTUM * (consistent - previous)
        phases = phases / phases.abs().clamp_min(1e-8)
        previous = consistent
    return phases
