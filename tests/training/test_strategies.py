"""Every strategy takes the same steps: gradients, weights, checkpoints, resume. Two gloo processes against one.

The runs have rows of unequal length, clip their gradients, and use a large Adam epsilon, which keeps updates
proportional to gradients, so that rounding is not blown up to full steps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from torch import Tensor

from csm import load_model
from csm.checkpoint.contents import config_of, read_parts
from csm.checkpoint.sharded import OPTIMIZER, is_sharded, read_sharded
from csm.checkpoint.zero import TAG, is_zero
from csm.config import OptimConfig
from csm.formats.open import open_checkpoint
from csm.model.csm import CSM
from csm.parallel.deepspeed import ZeroStrategy
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.optim import parameter_groups
from tests.conftest import ROOT, TINY_OVERRIDES, compose_train

STEPS = [
    *TINY_OVERRIDES,
    "model.backbone={layers: 2, dim: 48, heads: 6, kv_heads: 2, ffn_dim: 72}",
    "model.initializer_std=0.1",  # gradients of every tensor well above rounding
    "data.context_dropout=0.5",
    "data.micro_batch_size=1",
    "loss.decoder_chunk=37",
    "optim.eps=1e-2",
    "optim.warmup_steps=1",
    "optim.schedule=wsd",  # constant: does not depend on max_steps
    "optim.grad_clip=0.5",  # the norm is 0.9
    "trainer.max_steps=4",
    "trainer.val_every_steps=4",
    "trainer.checkpoint_every_steps=4",
]
TWO = ["trainer.devices=2"]
ZERO = ROOT / "tests" / "training" / "zero_on_cpu.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def overrides(small_dataset) -> list[str]:
    return [*STEPS, f"data.path={small_dataset}", "ckpt_path=last"]


def launch(overrides: list[str], script: Path = ROOT / "train.py") -> str:
    """Launches the processes and returns what they wrote to stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if script == ZERO:
        environment["DS_ACCELERATOR"] = "cpu"
    done = subprocess.run(
        [sys.executable, str(script), *overrides], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


@pytest.fixture(scope="module")
def one(folder, overrides) -> Path:
    """Four steps of one process, four microbatches each."""
    train(compose_train([*overrides, f"run_dir={folder / 'one'}"]))
    return folder / "one"


@pytest.fixture(scope="module")
def fsdp(folder, overrides) -> Path:
    """The same, two processes with half of every tensor, two microbatches each."""
    launch([*overrides, f"run_dir={folder / 'fsdp'}", "strategy=fsdp", *TWO])
    return folder / "fsdp"


@pytest.fixture(scope="module")
def one_of_two_rows(folder, overrides) -> Path:
    """The same with microbatches of two rows: the first batch of validation is that of two ranks together."""
    train(compose_train([*overrides, f"run_dir={folder / 'two-rows'}", "data.micro_batch_size=2"]))
    return folder / "two-rows"


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def gradients(run: Path) -> dict[str, Tensor]:
    """AdamW's first moment under the names of parameters: after clipping, a weighted mean of all steps' gradients."""
    path = last(run)
    if is_sharded(path):
        state = read_sharded(path, OPTIMIZER)[1]
        return {
            name.removeprefix("state.").removesuffix(".exp_avg"): tensor.read()
            for name, tensor in state.items()
            if name.endswith(".exp_avg")
        }
    content, _ = read_parts(path)
    with torch.device("meta"):
        model = CSM(config_of(content).model)
    names = {parameter: f"model.{name}" for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in parameter_groups(model, OptimConfig()) for parameter in group["params"]]
    moments = [state["exp_avg"] for state in content["optimizer_states"][0]["state"].values()]
    return dict(zip(order, moments, strict=True))


def check_same_run(first: Path, second: Path) -> None:
    """Weights to 1e-5, having moved much further than that; gradients to 1e-5 of the largest of their tensor."""
    weights, others = load_model(last(first)).state_dict(), load_model(last(second)).state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    if is_zero(last(second)):
        return
    moments, others = gradients(first), gradients(second)
    assert moments.keys() == others.keys() == {f"model.{name}" for name in weights}
    for name, tensor in moments.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-5 * float(tensor.abs().max()), rtol=0, msg=name)


def check_labels(first: Path, second: Path) -> None:
    """Validations of the same rows found the same about shifted labels, and nothing that sees what comes later."""
    ours, theirs = (
        [line for line in read_lines(run / "metrics.jsonl") if "val/loss" in line] for run in (first, second)
    )
    assert theirs[-1]["val/shift_gain"] == pytest.approx(ours[-1]["val/shift_gain"], abs=1e-4)
    assert all(line["val/leak"] == 0 for line in ours + theirs)


def check_moved(run: Path, start: Path) -> None:
    weights, before = load_model(last(run)).state_dict(), load_model(last(start)).state_dict()
    assert all((weights[name] - before[name]).abs().max() > 1e-4 for name in weights)


def test_one_batch_equals_four_microbatches(one, folder, overrides):
    train(compose_train([*overrides, f"run_dir={folder / 'batch'}", "data.micro_batch_size=4"]))
    check_same_run(one, folder / "batch")


@pytest.mark.slow
def test_ddp_equals_one_process(one, one_of_two_rows, folder, overrides):
    launch([*overrides, f"run_dir={folder / 'ddp'}", "strategy=ddp", *TWO])
    check_same_run(one, folder / "ddp")
    check_labels(one_of_two_rows, folder / "ddp")


@pytest.mark.slow
def test_ddp_keeps_gradients_in_its_buckets(overrides, tmp_path):
    """From the first step on no pass makes others of the size of the model; they are zero between steps."""
    watch = "+callbacks.buckets._target_=tests.training.buckets.Buckets"
    launch([*overrides, f"run_dir={tmp_path}", "strategy=ddp", watch])
    assert (tmp_path / "buckets").read_text() == "1 2 3 4"


@pytest.mark.slow
def test_fsdp_equals_one_process_and_exports_what_it_trained(one, one_of_two_rows, fsdp):
    assert is_sharded(last(fsdp)) and len(list(last(fsdp).glob("*.distcp"))) == 2
    check_same_run(one, fsdp)
    check_labels(one_of_two_rows, fsdp)
    exported, stored = load_model(fsdp / "export").state_dict(), load_model(last(fsdp)).state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())


@pytest.mark.slow
def test_fsdp_resumes_bit_for_bit_and_one_process_takes_over(one, fsdp, folder, overrides):
    half = ["trainer.max_steps=2", "trainer.val_every_steps=2"]
    launch([*overrides, *half, f"run_dir={folder / 'resumed'}", "strategy=fsdp", *TWO])
    shutil.copytree(folder / "resumed", folder / "taken-over")
    launch([*overrides, f"run_dir={folder / 'resumed'}", "strategy=fsdp", *TWO])
    assert read_parts(last(folder / "resumed"))[0]["global_step"] == 4
    for part in ("state_dict", OPTIMIZER):
        whole, resumed = (read_sharded(last(run), part)[1] for run in (fsdp, folder / "resumed"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor.read(), resumed[name].read()) for name, tensor in whole.items())

    check_moved(fsdp, folder / "taken-over")
    train(compose_train([*overrides, f"run_dir={folder / 'taken-over'}"]))
    assert last(folder / "taken-over").is_file()
    check_same_run(one, folder / "taken-over")


@pytest.mark.slow
def test_tensor_parallel_run_takes_over_from_one_process(one, folder, overrides):
    """Two steps of one process, two of two that share every matrix of the backbone and recompute activations."""
    half = ["trainer.max_steps=2", "trainer.val_every_steps=2"]
    train(compose_train([*overrides, *half, f"run_dir={folder / 'tensor'}"]))
    more = ["strategy=fsdp", "strategy.tensor_parallel_size=2", "trainer.activation_checkpointing=selective", *TWO]
    launch([*overrides, f"run_dir={folder / 'tensor'}", *more])
    assert is_sharded(last(folder / "tensor"))
    check_same_run(one, folder / "tensor")
    check_labels(one, folder / "tensor")


@pytest.mark.slow
def test_zero2_stops_resumes_and_equals_one_process(one, one_of_two_rows, folder, overrides):
    run = [*overrides, f"run_dir={folder / 'zero2'}", "strategy=deepspeed_zero2", *TWO]
    launch([*run, "trainer.max_steps=2", "trainer.val_every_steps=2"], ZERO)
    launch(run, ZERO)
    assert read_parts(last(folder / "zero2"))[0]["global_step"] == 4
    check_same_run(one, folder / "zero2")
    check_labels(one_of_two_rows, folder / "zero2")
    with pytest.raises(ValueError, match="only DeepSpeed continues a checkpoint of DeepSpeed"):
        train(compose_train([*overrides, f"run_dir={folder / 'zero2'}"]))


@pytest.mark.slow
def test_zero3_equals_one_process_and_its_checkpoint_admits_nothing_foreign(one, one_of_two_rows, folder, overrides):
    more = ["strategy=deepspeed_zero3_offload", "trainer.activation_checkpointing=full", *TWO]
    launch([*overrides, f"run_dir={folder / 'zero3'}", *more], ZERO)
    path = last(folder / "zero3")
    check_same_run(one, folder / "zero3")
    check_labels(one_of_two_rows, folder / "zero3")
    assert open_checkpoint(path).read_tokenizer().vocab_size == 258

    file = next((path / TAG).glob("*_optim_states.pt"))
    content = torch.load(file, weights_only=False)

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "owned"),))

    torch.save(content | {"more": Payload()}, file)
    with pytest.raises(ValueError, match=rf"{file.name} holds Python objects \(posix\.mkdir\)"):
        open_checkpoint(path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        open_checkpoint(path)
    file.unlink()
    for other in (path / TAG).glob("*_optim_states.pt"):
        other.unlink()
    with pytest.raises(ValueError, match="is incomplete"):
        open_checkpoint(path)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TWO, "strategy=single trains on one device"),
        (["strategy=ddp", "strategy.cpu_offload=true"], "strategy.cpu_offload=true needs strategy=fsdp or deepspeed"),
        (["strategy=ddp", "strategy.tensor_parallel_size=2", *TWO], "tensor_parallel_size belongs to strategy=fsdp"),
        (["strategy=fsdp", "strategy.tensor_parallel_size=2"], "=2 does not divide the number of devices, 1"),
        (
            ["strategy=fsdp", "strategy.tensor_parallel_size=4", "trainer.devices=4"],
            "tensor_parallel_size=4 does not divide model.backbone.heads=6",
        ),
        (["strategy=fsdp", "strategy.tensor_parallel_size=2", "lora.rank=2", *TWO], "LoRA adapters are not split"),
        (["trainer.precision=16-mixed"], "precision=16-mixed is unknown; choose bf16-mixed, 32-true or auto"),
        (["strategy=fsdp", "trainer.precision=bf16-true"], "trainer.precision=bf16-true is unknown"),
        (["strategy=deepspeed_zero2"], "strategy=deepspeed_zero2 needs CUDA devices"),
        (["data.max_seq_len=4096"], "data.max_seq_len=4096 exceeds model.max_seq_len=2048"),
        (["data.window_shards=0"], "data.window_shards=0 must be at least 1"),
        (["data.global_batch_size=3", "data.micro_batch_size=2"], "global_batch_size=3 is not a multiple of"),
    ],
)
def test_options_that_do_not_go_together(options, expected, overrides, tmp_path):
    config = compose_train([*overrides, *options, f"run_dir={tmp_path}"])
    with pytest.raises(ValueError, match=expected):
        train(config)


def test_deepspeed_computes_in_bf16_over_fp32_and_offloads_what_its_stage_shards(overrides):
    config = compose_train([*overrides, "strategy=deepspeed_zero3_offload", "optim.grad_clip=0.7"])
    strategy = ZeroStrategy(config.strategy, bf16=True, grad_clip=config.optim.grad_clip)
    assert strategy.zero_stage_3
    parsed = DeepSpeedConfig(strategy.config | {"gradient_accumulation_steps": 1})
    assert parsed.bfloat16_config.enabled and parsed.grad_accum_dtype == "fp32"
    assert parsed.communication_data_type == torch.float32 and parsed.gradient_clipping == 0.7
    assert parsed.zero_config.offload_optimizer.device == parsed.zero_config.offload_param.device == "cpu"
    assert parsed.zero_allow_untested_optimizer and not parsed.zero_force_ds_cpu_optimizer
    options = compose_train([*overrides, "strategy=deepspeed_zero2_offload"]).strategy
    smaller = ZeroStrategy(options, bf16=False, grad_clip=1.0).config
    assert smaller["zero_optimization"]["stage"] == 2 and "offload_param" not in smaller["zero_optimization"]
