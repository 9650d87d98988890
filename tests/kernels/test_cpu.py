"""The fused CPU kernels against the plain modules that they replace: values and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from csm.config import LoraConfig, LossConfig
from csm.kernels import cpu
from csm.model.lora import apply_lora
from tests.tiny import K, conversation, forward, rows, tiny_model


def test_norm_equals_torch_in_double_precision():
    torch.manual_seed(0)
    x = torch.randn(3, 7, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(20, dtype=torch.float64, requires_grad=True)
    results = []
    for norm in (lambda: cpu.RMSNormFunction.apply(x, weight, 1e-5), lambda: F.rms_norm(x, (20,), weight, 1e-5)):
        y = norm()
        results.append((y, *torch.autograd.grad(y, (x, weight), y.detach().sin())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_installed_kernels_compute_what_the_plain_model_does(lora, bf16):
    """With adapters too, whose projections are called as modules; one text embedding is a frame's, one code is used by
    both stacks."""
    batch = rows([[conversation(i, (6 + i, 9))] for i in range(3)], ratio=4)
    results = []
    for install in (False, True):
        model = tiny_model()
        if lora:
            apply_lora(model, LoraConfig(rank=3, train_modules=["audio_embeddings"]))
            for name, parameter in model.named_parameters():
                if name.endswith("lora_b") or name.endswith("lora_a"):
                    torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        if install:
            cpu.install(model)
            replaced = {type(module).__name__ for module in model.modules()}
            assert {"CpuCSM", "CpuAttention", "CpuFeedForward", "CpuRMSNorm"} <= replaced
            assert not replaced & {"CSM", "Attention", "FeedForward", "RMSNorm"}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sums = forward(model, batch)
        sums.loss(LossConfig(), 20.0).backward()
        results.append((sums.stacked(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    (plain, expected), (fused, found) = results
    tolerance = 2e-2 if bf16 else 1e-4
    torch.testing.assert_close(fused[:K], plain[:K], atol=0, rtol=tolerance)  # the loss of every codebook
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=scale * tolerance, rtol=0, msg=name)


def test_state_keeps_its_names_and_values():
    model, plain = tiny_model(), tiny_model()
    cpu.install(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
