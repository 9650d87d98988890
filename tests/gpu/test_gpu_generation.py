"""Generation on a GPU says what it says on the CPU, in every mode."""

from __future__ import annotations

import pytest
import torch

from csm.inference.engine import Engine, Request
from csm.inference.modes import Mode
from csm.inference.sampling import Sampling
from csm.inference.weights import DecodingWeights
from tests.inference.test_engine import prompt
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def spoken(device: str, dtype: torch.dtype, mode: Mode = "eager") -> list[list[list[int]]]:
    """Greedy frames of three requests over two slots; one has a context."""
    engine = Engine(DecodingWeights(tiny_model().eval().to(device, dtype), share=True), slots=2, mode=mode)
    requests = [Request(*prompt(seed, 5, 9 * seed), 4 + seed, Sampling(temperature=0.0)) for seed in range(3)]
    for request in requests:
        engine.submit(request)
    engine.run(*requests)
    return [request.frames for request in requests]


@pytest.mark.parametrize("mode", ["eager", "compiled", "cuda_graph"])
def test_frames_on_a_gpu_are_those_of_the_cpu(mode):
    assert spoken("cuda", torch.float32, mode) == spoken("cpu", torch.float32)


def test_bf16_reads_prompts_and_speaks():
    """Its words may differ by rounding."""
    frames = spoken("cuda", torch.bfloat16)
    assert all(1 <= len(each) <= 4 + seed for seed, each in enumerate(frames))
