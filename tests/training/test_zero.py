"""DeepSpeed, on two CPU processes: what it skips, LoRA, and the weights that a run starts from.

Each runs with one of the four strategies, every strategy in one of them: a run takes most of a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm import load_model
from csm.checkpoint.contents import read_parts
from csm.checkpoint.zero import TAG
from csm.formats.open import open_checkpoint
from csm.parallel.gradients import propagate_nonfinite
from csm.training.build import train
from csm.training.loggers import read_lines
from tests.conftest import ROOT, compose_train
from tests.training.forked import launcher_variables
from tests.training.recorded import recorded
from tests.training.test_loop import as_lightnings_trainer_wrote_it
from tests.training.test_strategies import STEPS, TWO, ZERO, check_same_run, last, launch

ENGINES = ROOT / "tests" / "training" / "zero_engines.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def overrides(small_dataset) -> list[str]:
    return [*STEPS, f"data.path={small_dataset}", "ckpt_path=last", "trainer.log_every_steps=4"]


@pytest.mark.slow
def test_steps_with_bad_gradients_leave_no_trace_on_any_rank():
    """Both stages, in both precisions, with and without offloading."""
    environment = {**os.environ, **launcher_variables(2), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["DS_ACCELERATOR"] = "cpu"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ENGINES)],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(output[-3000:] for output in outputs)
    assert all(output.count("checked") == 8 for output in outputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gradients_of_a_loss_that_is_not_finite_are_not_finite(value):
    weight = torch.ones(2, requires_grad=True)
    propagate_nonfinite(weight.sum() + value).backward()
    assert weight.grad.isnan().all()
    weight.grad = None
    loss = propagate_nonfinite(weight.sum() / 3)
    loss.backward()
    assert loss == weight.detach().sum() / 3 and torch.equal(weight.grad, torch.full((2,), 1 / 3))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_zero2"])
def test_a_run_skips_what_one_process_skips(strategy, folder, overrides):
    """Step 2 is bad on one of two ranks; and, by itself, in one process."""
    one, two = folder / "bad-one", folder / f"bad-{strategy}"
    with recorded(bad_steps=(2,)):
        train(compose_train([*overrides, f"run_dir={one}"]))
    said = launch(["bad_step=2", *overrides, f"run_dir={two}", f"strategy={strategy}", *TWO], ZERO)
    check_same_run(one, two)
    size = sum(tensor.numel() for tensor in load_model(last(one)).state_dict().values())
    assert f"{size / 1e6:.1f}M parameters" in said  # though ZeRO 3 leaves none where it took them
    (record,) = read_lines(two / "skipped_steps.jsonl")
    assert record["step"] == 2 and [rank["loss"] is None for rank in record["ranks"]] == [False, True]
    for name in ("train/skipped_steps", "train/loss", "train/gradient_norm"):
        ours, theirs = (read_lines(run / "metrics.jsonl")[0][name] for run in (one, two))
        assert theirs == pytest.approx(ours, rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_zero3"])
def test_folder_of_an_earlier_version_resumes(strategy, folder, overrides):
    """After two steps, one rank's, under the names that options had; the four steps are those of one process."""
    one, run = folder / "earlier-one", folder / f"earlier-{strategy}"
    train(compose_train([*overrides, f"run_dir={one}"]))
    options = [*overrides, f"run_dir={run}", f"strategy={strategy}"]
    launch([*options, "trainer.max_steps=2", "trainer.val_every_steps=2"], ZERO)
    (states,) = (last(run) / TAG).glob("*mp_rank_00_model_states.pt")
    as_lightnings_trainer_wrote_it(states)
    launch(options, ZERO)
    assert read_parts(last(run))[0]["global_step"] == 4
    check_same_run(one, run)


LORA = ["lora.rank=4", "lora.alpha=8", "lora.dropout=0", "lora.train_modules=[audio_embeddings]", "optim.lr=2e-2"]


@pytest.fixture(scope="module")
def base(folder, overrides) -> Path:
    """The checkpoint of one step."""
    steps = ["trainer.max_steps=1", "trainer.val_every_steps=1", "seed=7"]
    train(compose_train([*overrides, *steps, f"run_dir={folder / 'base'}"]))
    return last(folder / "base")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_zero3_offload"])
def test_lora_from_a_checkpoint_stops_resumes_and_equals_one_process(strategy, base, folder, overrides):
    one, two = folder / "lora-one", folder / f"lora-{strategy}"
    options = [*overrides, *LORA, f"init_from={base}"]
    train(compose_train([*options, f"run_dir={one}"]))
    run = [*options, f"run_dir={two}", f"strategy={strategy}", *TWO]
    launch([*run, "trainer.max_steps=2", "trainer.val_every_steps=2"], ZERO)
    launch(run, ZERO)
    assert read_parts(last(two))[0]["global_step"] == 4
    check_same_run(one, two)
    (_, stored), original = read_parts(last(two)), load_model(base).state_dict()
    frozen = [name for name in original if name != "audio_embeddings.weight"]
    assert all(torch.equal(stored[f"model.{name}"].read(), original[name]) for name in frozen)
    weights = load_model(last(two)).state_dict()
    changed = {name for name, tensor in weights.items() if (tensor - original[name]).abs().max() > 1e-4}
    adapted = {name.removeprefix("model.").replace("lora_a", "weight") for name in stored if name.endswith("lora_a")}
    assert changed == adapted | {"audio_embeddings.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_zero2_offload"])
def test_frozen_weights_of_bf16_are_those_that_the_run_started_from(strategy, base, folder, overrides):
    """Rounded, as DeepSpeed does it. They come from a .ckpt file, whose tensors torch builds by itself."""
    run = folder / f"bf16-{strategy}"
    options = ["trainer.precision=bf16-mixed", f"init_from={base}", f"strategy={strategy}", *TWO, f"run_dir={run}"]
    launch(["bad_step=2", *overrides, *LORA, *options], ZERO)
    checkpoint, original = open_checkpoint(last(run)), load_model(base).state_dict()
    (_, stored) = read_parts(last(run))
    for name in original:
        kept = stored[f"model.{name}"].read()
        assert kept.dtype == checkpoint.weights[name].read().dtype == torch.float32, name
        if name != "audio_embeddings.weight":
            assert torch.equal(kept, original[name].bfloat16().float()), name
    moved = [tensor.read().abs().max() for name, tensor in stored.items() if name.endswith("lora_b")]
    assert all(moment > 1e-3 for moment in moved)
    assert [record["step"] for record in read_lines(run / "skipped_steps.jsonl")] == [2]
