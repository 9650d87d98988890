"""The fused CPU kernels against the plain modules that they replace: values and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from csm.config import LoraConfig, LossConfig
from csm.kernels import cpu
from csm.model.lora import apply_lora
from tests.tiny import conversation, forward, rows, tiny_model


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


def gradients(lora: bool, fused: bool, bf16: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of every codebook, and the gradients of a tiny model, plain or with the kernels installed."""
    batch = rows([[conversation(i, (6 + i, 9))] for i in range(3)], ratio=4)
    model = tiny_model()
    if lora:
        apply_lora(model, LoraConfig(rank=3, train_modules=["audio_embeddings"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    if fused:
        cpu.install(model)
        replaced = {type(module).__name__ for module in model.modules()}
        assert {"CpuCSM", "CpuAttention", "CpuFeedForward", "CpuRMSNorm"} <= replaced
        assert not replaced & {"CSM", "Attention", "FeedForward", "RMSNorm"}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        sums = forward(model, batch)
    sums.loss(LossConfig(), 20.0).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return sums.losses, found


@pytest.mark.parametrize("lora", [False, True])
def test_installed_kernels_compute_what_the_plain_model_does(lora):
    """With adapters too, whose projections are called as modules."""
    (losses, expected), (fused_losses, found) = gradients(lora, False, False), gradients(lora, True, False)
    torch.testing.assert_close(fused_losses, losses, atol=0, rtol=1e-5)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=0, msg=name)


@pytest.mark.parametrize("lora", [False, True])
def test_under_autocast_kernels_are_as_exact_as_the_plain_model(lora):
    """bf16 rounds every product; the error against fp32 is about as large with the kernels as without."""
    _, exact = gradients(lora, False, False)
    errors = []
    for fused in (False, True):
        _, found = gradients(lora, fused, True)
        differences = [torch.linalg.vector_norm(found[name] - gradient).square() for name, gradient in exact.items()]
        errors.append(float(torch.stack(differences).sum().sqrt()))
    plain_error, fused_error = errors
    assert 0 < fused_error < 1.5 * plain_error


def test_state_keeps_its_names_and_values():
    model, plain = tiny_model(), tiny_model()
    cpu.install(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
