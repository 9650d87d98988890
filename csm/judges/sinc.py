"""Resampling by windowed-sinc interpolation: torchaudio's default, which published speaker similarities were made with.

The definition is that of torchaudio.functional.resample (Smith, "Digital Audio Resampling", CCRMA) with a Hann window,
six zero crossings and a roll-off of 0.99. The project resamples with soxr everywhere else.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_CROSSINGS, _ROLLOFF = 6, 0.99


def sinc_resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Mono float32 [N] -> [ceil(N * to_rate / from_rate)]."""
    if from_rate == to_rate or not len(audio):
        return audio
    divisor = math.gcd(from_rate, to_rate)
    old, new = from_rate // divisor, to_rate // divisor
    cutoff = min(old, new) * _ROLLOFF
    width = math.ceil(_CROSSINGS * old / cutoff)
    # One filter for each of the `new` phases: taps at the times of input samples, relative to the output sample.
    # The phases in float32 are torchaudio's too: its results are met to the bit.
    taps = torch.arange(-width, width + old, dtype=torch.float64)[None] / old
    times = (taps - torch.arange(new, dtype=torch.float32)[:, None] / new) * cutoff  # [new, taps]
    times = times.clamp(-_CROSSINGS, _CROSSINGS)
    window = torch.cos(times * math.pi / _CROSSINGS / 2) ** 2
    kernels = (torch.sinc(times) * window * (cutoff / old)).float()
    padded = F.pad(audio, (width, width + old))
    phases = F.conv1d(padded[None, None], kernels[:, None], stride=old)[0]  # [new, blocks]
    return phases.T.reshape(-1)[: math.ceil(new * len(audio) / old)]
