"""Frozen parts stay as they are, bit for bit, whatever strategy trains the rest; the export is a whole model."""

from __future__ import annotations

import pytest
import torch

from csm import load_model
from csm.checkpoint.contents import read_training_checkpoint
from csm.model.freeze import PARTS, freeze, part_of
from csm.planning.state import Parameters
from csm.training.build import train
from csm.training.optim import trainable_parts
from csm.validate import validate_train_config
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.tiny import conversation, forward_backward, rows, tiny_model
from tests.training.test_train import last_weights, run


@pytest.mark.parametrize("frozen", [["backbone", "embeddings"], ["decoder", "embeddings"], ["text_embeddings"], []])
def test_gradients_reach_what_is_not_frozen_and_nothing_else(frozen):
    """Also where neither the inputs nor the weights of the depth decoder need a gradient."""
    config = compose_train(["data.path=x"]).loss
    whole, model = tiny_model(), tiny_model()
    freeze(model, frozen)
    batch = rows([[conversation(i)] for i in range(2)], 40)
    for each in (whole, model):
        forward_backward(each, batch, 4, config, 11.0)
    expected = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        stays = part_of(name) in frozen or (frozen == ["text_embeddings"] and name == "text_embeddings.weight")
        assert (parameter.grad is None) == stays, name
        if not stays:
            assert torch.equal(parameter.grad, expected[name].grad), name
    assert set(trainable_parts(model)) == {"backbone", "decoder", "embeddings"} - set(frozen)


def test_a_plan_counts_what_is_trained():
    config = compose_train(["data.path=x"])
    whole = Parameters.of(config.model, config.lora)
    part = Parameters.of(config.model, config.lora, ["backbone", "text_embeddings"])
    assert part.total == whole.total and part.trained["backbone"] == part.trained["text_embeddings"] == 0
    assert part.trained["audio_embeddings"] == whole.total["audio_embeddings"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["freeze=[codec]"], f"freeze: 'codec' is unknown; choose from {', '.join(PARTS)}"),
        (["freeze=[decoder]", "lora.rank=4"], "does not go with lora.rank=4.*lora.stacks"),
        (["freeze=[backbone,decoder,embeddings]"], "leaves nothing to train"),
        (["data.loss_turns=first"], "data.loss_turns=first must be all, last or speaker:N"),
        (["data.text_dropout=1.5"], "data.text_dropout=1.5 is a probability"),
        (["data.mix_steps=10"], "data.mix_steps=10: weights of a mixture move"),
        (["loss.eos_weight=-1"], "loss.eos_weight=-1.0 must be at least 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(words, message):
    config = compose_train([*TINY_OVERRIDES, "data.path=x", *words])
    with pytest.raises(ValueError, match=message) as refused:
        validate_train_config(config, 1, "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_run_leaves_frozen_parts_alone_and_exports_a_whole_model(tiny_overrides, tmp_path, strategy):
    train(compose_train([*tiny_overrides, "trainer.max_steps=1", f"run_dir={tmp_path / 'base'}"]))
    words = [
        *(*tiny_overrides, f"init_from={tmp_path / 'base' / 'export'}", "freeze=[backbone,text_embeddings]"),
        *(f"strategy={strategy}", f"trainer.devices={1 if strategy == 'single' else 2}", "data.micro_batch_size=1"),
        *("trainer.ema_decay=0.5", "optim.lr=1e-2", "optim.warmup_steps=1", "trainer.max_steps=2"),
    ]
    done = run(words)
    assert done.returncode == 0, done.stderr
    base = load_model(tmp_path / "base" / "export").state_dict()
    exported = load_model(tmp_path / "run" / "export").state_dict()
    assert exported.keys() == base.keys()
    for name, tensor in exported.items():
        frozen = name.startswith(("backbone.", "text_embeddings."))
        assert torch.equal(tensor, base[name]) == frozen, name
    if strategy == "single":
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        stored = read_training_checkpoint(last)["optimizer_states"][0]["state"]
        assert len(stored) == sum(part_of(name) == "decoder" or "audio" in name for name in base)
        averages = [name for name in last_weights(tmp_path / "run") if name.startswith("ema.")]
        assert len(averages) == len(stored)
        refused = run([*words, "ckpt_path=last", "freeze=[backbone]", "trainer.max_steps=3"])
        assert refused.returncode == 2 and "freeze: ['backbone', 'text_embeddings'] -> ['backbone']" in refused.stderr
