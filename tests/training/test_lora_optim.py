"""LoRA adapters in an optimizer step: which parameters it sees, and over two processes."""

from __future__ import annotations

import pytest
import torch

from csm import load_model
from csm.checkpoint.contents import read_training_checkpoint
from csm.config import LoraConfig, OptimConfig
from csm.model.lora import apply_lora
from csm.training.build import train
from csm.training.optim import parameter_groups
from tests.conftest import compose_train
from tests.tiny import tiny_model
from tests.training.test_train import last_weights, logged, run


def test_optimizer_sees_adapters_without_decay_and_nothing_frozen():
    model = tiny_model()
    apply_lora(model, LoraConfig(rank=3, train_modules=["codebook0_head"]))
    config = OptimConfig(lr=1.0, backbone_lr_scale=0.5, decoder_lr_scale=2.0, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }
    assert seen.pop("codebook0_head.weight") == (2.0, 0.3)
    assert seen.keys() == {name for name in names.values() if ".lora_" in name}
    for name, settings in seen.items():
        assert settings == (0.5 if name.startswith("backbone.") else 2.0, 0.0), name


@pytest.mark.slow
def test_two_processes_equal_one(tiny_overrides, tmp_path):
    """1 process x 2 microbatches = 2 gloo processes x 1, with almost all parameters frozen.

    A large Adam epsilon keeps the update proportional to the gradient, so rounding is not blown up to a full step.
    """
    train(compose_train([*tiny_overrides, "trainer.max_steps=1", f"run_dir={tmp_path / 'base'}"]))
    lora = ["lora.rank=4", "lora.train_modules=[codebook0_head]", "optim.eps=1e-2", "optim.lr=1e-1"]
    overrides = [*tiny_overrides, *lora, f"init_from={tmp_path / 'base' / 'export'}", "optim.warmup_steps=1"]
    one = run(overrides)
    assert one.returncode == 0, one.stderr
    two = run([*overrides, f"run_dir={tmp_path / 'two'}", "strategy=ddp", "trainer.devices=2"])
    assert two.returncode == 0, two.stderr

    for first, second in zip(logged(tmp_path / "run"), logged(tmp_path / "two"), strict=True):
        for name in ("train/loss", "train/gradient_norm", "val/loss"):
            if first[name]:
                assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-4), name
    weights = last_weights(tmp_path / "two")
    for name, tensor in last_weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4, msg=name)
    for name, tensor in load_model(tmp_path / "base" / "export").state_dict().items():
        assert torch.equal(weights[f"model.{name}"], tensor) == (name != "codebook0_head.weight"), name
    assert all(tensor.abs().max() > 1e-3 for name, tensor in weights.items() if name.endswith("lora_b"))

    # The optimizer's state holds the trained parameters and no others.
    checkpoint = read_training_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    trained = sum(".lora_" in name for name in weights) + 1
    assert len(checkpoint["optimizer_states"][0]["state"]) == trained == 2 * 7 * (2 + 1) + 1
