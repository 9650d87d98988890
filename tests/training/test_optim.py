"""Schedules and parameter groups against hand-computed values."""

from __future__ import annotations

import pytest
import torch

from csm.config import OptimConfig, Schedule
from csm.model.csm import CSM
from csm.parallel.gradients import clip_divisor, clip_gradients, gradient_norms
from csm.training.optim import build_optimizer, lr_factor, parameter_groups, trainable_parts
from tests.tiny import tiny_model


def test_cosine():
    config = OptimConfig(warmup_steps=10, min_lr_ratio=0.1)
    assert [lr_factor(s, config, 110) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert lr_factor(60, config, 110) == pytest.approx(0.55)  # half way between 1 and 0.1
    assert lr_factor(110, config, 110) == pytest.approx(0.1)
    assert lr_factor(500, config, 110) == pytest.approx(0.1)


def test_warmup_stable_decay():
    config = OptimConfig(schedule=Schedule.wsd, warmup_steps=10, decay_steps=20, min_lr_ratio=0.2)
    assert [lr_factor(s, config, 100) for s in (9, 50, 80)] == pytest.approx([1.0, 1.0, 1.0])
    assert lr_factor(90, config, 100) == pytest.approx(0.6)
    assert lr_factor(100, config, 100) == pytest.approx(0.2)


def test_groups_hold_every_parameter_once_with_the_right_settings():
    model = tiny_model()
    config = OptimConfig(lr=1.0, backbone_lr_scale=0.5, decoder_lr_scale=2.0, embeddings_lr_scale=3.0, weight_decay=0.3)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = {}
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            assert id(parameter) not in seen
            seen[id(parameter)] = (group["lr"], group["weight_decay"])
    assert seen.keys() == names.keys()
    by_name = {names[key]: value for key, value in seen.items()}
    assert by_name["backbone.layers.0.attn.q_proj.weight"] == (0.5, 0.3)
    assert by_name["backbone.layers.0.attn_norm.weight"] == (0.5, 0.0)
    assert by_name["decoder.layers.1.mlp.down_proj.weight"] == (2.0, 0.3)
    assert by_name["decoder.norm.weight"] == (2.0, 0.0)
    assert by_name["codebook0_head.weight"] == by_name["projection.weight"] == by_name["audio_head"] == (2.0, 0.3)
    assert by_name["audio_embeddings.weight"] == by_name["text_embeddings.weight"] == (3.0, 0.0)
    assert build_optimizer(model, config).defaults["fused"] is True


def model_with_gradients(norm: float) -> CSM:
    """Its gradients differ in every element, and have that norm together."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = [parameter.grad for parameter in model.parameters()]
    torch._foreach_mul_(gradients, norm / torch.nn.utils.get_total_norm(gradients))
    return model


@pytest.mark.parametrize(("limit", "norm_after"), [(5.0, 3.0), (1.5, 1.5)])
def test_clipping_by_the_norm_of_all_gradients(limit, norm_after):
    model = model_with_gradients(3.0)
    norms = gradient_norms(trainable_parts(model))
    assert norms["total"].item() == pytest.approx(3.0, rel=1e-5)
    parts = torch.stack([norm for part, norm in norms.items() if part != "total"])
    assert torch.linalg.vector_norm(parts).item() == pytest.approx(3.0, rel=1e-5)
    clip_gradients(trainable_parts(model), norms["total"], limit, build_optimizer(model, OptimConfig()))
    after = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert after.item() == pytest.approx(norm_after, rel=1e-5)


@pytest.mark.parametrize("limit", [5.0, 1.5])
def test_clipping_inside_the_fused_optimizer_takes_the_same_steps(limit):
    """As on CUDA, where the optimizer is told what to divide gradients by; without clipping exactly the same steps."""
    weights = []
    for inside in (False, True):
        model = model_with_gradients(3.0)
        optimizer = build_optimizer(model, OptimConfig(eps=0.1))  # AdamW's first steps hide the size of a gradient
        norm = gradient_norms(trainable_parts(model))["total"]
        if inside:
            optimizer.grad_scale = clip_divisor(norm, limit)
        else:
            clip_gradients(trainable_parts(model), norm, limit, optimizer)
        optimizer.step()
        weights.append(list(model.parameters()))
    for divided, scaled in zip(*weights, strict=True):
        torch.testing.assert_close(divided, scaled, atol=0 if limit == 5.0 else 1e-9, rtol=0 if limit == 5.0 else 1e-6)
