"""Speech-like sounds for the codec tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

RATE = 24_000


@pytest.fixture(scope="session")
def babble() -> Callable[[int, int], Tensor]:
    """`babble(num_samples, seed)`: see `make_babble`."""
    return make_babble


def make_babble(num_samples: int, seed: int) -> Tensor:
    """Gliding harmonics under a moving formant, with pauses: float32 [num_samples] at 24 kHz, within [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_samples, dtype=torch.float64) / RATE
    control = torch.randn(3, num_samples // 2400 + 3, generator=generator, dtype=torch.float64)  # ten values a second
    pitch, formant, level = torch.nn.functional.interpolate(
        control[None], size=num_samples, mode="linear", align_corners=True
    )[0]
    phase = 2 * torch.pi * torch.cumsum((130 + 30 * pitch) / RATE, dim=0)
    audio = torch.zeros_like(time)
    for harmonic in range(1, 30):
        distance = (130 * harmonic - (1200 + 500 * formant)) / 400
        audio += torch.sin(harmonic * phase) * torch.exp(-0.5 * distance**2)
    return (audio * level.clamp_min(0) * 0.05).float().clamp(-1, 1)
