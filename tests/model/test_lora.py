"""LoRA on the model alone."""

from __future__ import annotations

import copy

import pytest
import torch

from csm.config import LoraConfig, LossConfig
from csm.model.lora import LoraLinear, apply_lora, merged
from tests.tiny import conversation, forward, rows, tiny_model

CONFIG = LoraConfig(rank=3, alpha=7.0)


@pytest.fixture
def batch():
    return rows([[conversation(0)], [conversation(1)]])


def adapted_pair(config: LoraConfig = CONFIG):
    base = tiny_model()
    adapted = copy.deepcopy(base)
    torch.manual_seed(1)
    apply_lora(adapted, config)
    return base, adapted


def test_training_starts_at_the_base_model_exactly(batch):
    base, adapted = adapted_pair()
    assert torch.equal(forward(base, batch).losses, forward(adapted, batch).losses)


def test_only_adapters_learn(batch):
    _, adapted = adapted_pair(LoraConfig(rank=3, targets=["q_proj", "up_proj"], train_modules=["codebook0_head"]))
    forward(adapted, batch).loss(LossConfig(), 1.0).backward()
    learning = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    expected = {name for name in adapted.state_dict() if ".lora_" in name} | {"codebook0_head.weight"}
    assert learning == expected
    assert len(expected) == 2 * 2 * (3 + 2) + 1
    assert all(name.split(".")[-2] in ("q_proj", "up_proj") for name in expected if ".lora_" in name)


def test_merged_weights_compute_the_same(batch):
    base, adapted = adapted_pair()
    with torch.no_grad():
        for module in adapted.modules():
            if isinstance(module, LoraLinear):
                module.lora_b.normal_(std=0.1)
    with torch.no_grad():
        expected = forward(adapted, batch).losses
        assert not torch.allclose(expected, forward(base, batch).losses, rtol=1e-2)
        for name, module in adapted.named_modules():
            if isinstance(module, LoraLinear):
                target = base.get_submodule(name)
                target.weight.copy_(merged(module.weight, module.lora_a, module.lora_b, CONFIG))
        torch.testing.assert_close(forward(base, batch).losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LoraConfig(rank=2, targets=["qproj"]), r"lora\.targets: 'qproj' is unknown; choose from q_proj, k_proj"),
        (LoraConfig(rank=2, stacks=["depth"]), r"lora\.stacks: 'depth' is unknown; choose from backbone, decoder"),
        (LoraConfig(rank=2, train_modules=["head"]), r"lora\.train_modules: 'head' is unknown; .*codebook0_head"),
        (LoraConfig(rank=2, targets=[]), "must each name at least one"),
    ],
)
def test_unknown_names(config, reason):
    with pytest.raises(ValueError, match=reason):
        apply_lora(tiny_model(), config)
