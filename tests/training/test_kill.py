"""kill -9 and stop signals at any moment: what is left continues to the same weights, bit for bit, as a run that nobody
disturbed."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from torch import Tensor

from csm.checkpoint.contents import read_training_checkpoint
from csm.training.loggers import read_lines
from csm.training.module import CSMTrainingModule
from csm.training.signals import StopRequest, signal_handlers
from csm.training.train import TrainingLoop
from tests.conftest import TINY_OVERRIDES
from tests.training.forked import Run, finished, server, wait_for

STEPS = [
    *("trainer.val_every_steps=3", "trainer.checkpoint_every_steps=1", "trainer.keep_every_steps=5", "ckpt_path=last"),
    *("data.global_batch_size=2", "data.micro_batch_size=1", "data.context_dropout=0.5", "optim.warmup_steps=3"),
    "optim.schedule=wsd",  # without a decay: max_steps changes nothing
    "trainer.log_every_steps=2",  # checkpoints in the middle of an interval too
]


def overrides(dataset: Path, folder: Path, max_steps: int = 12) -> list[str]:
    return [*TINY_OVERRIDES, *STEPS, f"data.path={dataset}", f"run_dir={folder}", f"trainer.max_steps={max_steps}"]


def inode(file: Path) -> int | None:
    """Tells a file from the one that replaces it; None if there is none."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return None


def newest_step(run_dir: Path) -> int:
    for name in ("last", "previous"):
        file = run_dir / "checkpoints" / f"{name}.ckpt"
        if file.exists():
            return read_training_checkpoint(file)["global_step"]
    return 0


def assert_same_history(run_dir: Path, expected: Path) -> None:
    """Every line once, with the same values but for those that measure time and memory. An interval that a checkpoint
    divides is summed over ranks in another order."""
    histories = [read_lines(folder / "metrics.jsonl") for folder in (run_dir, expected)]
    for first, second in zip(*histories, strict=True):
        names = [name for name in second if name.split("/")[0] not in ("throughput", "memory")]
        assert len(names) > 15
        expected_line = {name: second[name] for name in names}
        assert {name: first.get(name) for name in names} == pytest.approx(expected_line, rel=1e-6)


def assert_same_outcome(run_dir: Path, expected: Path) -> None:
    """The same checkpoints under the same names, with the same weights, optimizers and best loss."""
    assert_same_history(run_dir, expected)
    files = {file.name for file in (run_dir / "checkpoints").glob("*.ckpt")}
    assert files == {file.name for file in (expected / "checkpoints").glob("*.ckpt")} >= {"best.ckpt", "last.ckpt"}
    for name in files:
        one, other = (read_training_checkpoint(folder / "checkpoints" / name) for folder in (run_dir, expected))
        if name == "previous.ckpt":  # a run that was resumed may have ended with another cadence
            continue
        assert one["global_step"] == other["global_step"], name
        assert one["state_dict"].keys() == other["state_dict"].keys()
        for key, tensor in one["state_dict"].items():
            assert torch.equal(tensor, other["state_dict"][key]), (name, key)
        optimizers = (content["optimizer_states"][0]["state"] for content in (one, other))
        for first, second in zip(*(states.values() for states in optimizers), strict=True):
            assert all(torch.equal(first[key], second[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        if name == "last.ckpt":
            assert one["csm_progress"]["best_loss"] == other["csm_progress"]["best_loss"]


@pytest.fixture(scope="module")
def whole_of_two(small_dataset, tmp_path_factory) -> Path:
    """A run of two processes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("two")
    finished(overrides(small_dataset, folder), folder / "log", ranks=2)
    return folder


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(small_dataset, tmp_path):
    """One run. A quarter of the kills falls into the start and the first steps, a quarter somewhere after the first new
    checkpoint, and half of them into the writing of a checkpoint, which half of the runs do in the background."""
    endless = overrides(small_dataset, tmp_path / "run", max_steps=10**6)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    partial = last.with_name("last.ckpt.partial")
    rng = random.Random(7)
    steps, inside_a_write = [], 0
    for number in range(20):
        partial.unlink(missing_ok=True)
        before = inode(last)
        run = Run([*endless, f"trainer.async_checkpoint={number % 8 < 4}"], tmp_path / "log")
        if number % 4 == 0:
            time.sleep(rng.uniform(0.1, 1.5))
        else:
            wait_for(lambda before=before: inode(last) not in (None, before), run)
        if number % 4 == 2:
            time.sleep(rng.uniform(0, 0.3))
        elif number % 2:
            wait_for(partial.exists, run)
            time.sleep(rng.uniform(0, 0.005))
        assert run.kill() == [-9], run.output()
        inside_a_write += partial.exists()
        steps.append(newest_step(tmp_path / "run"))
    print(f"\nnewest step after each kill: {steps}; {inside_a_write} kills inside a write")
    assert steps == sorted(steps) and steps[-1] >= 5
    assert inside_a_write >= 5

    finished(overrides(small_dataset, tmp_path / "run", steps[-1] + 4), tmp_path / "log")
    finished(overrides(small_dataset, tmp_path / "whole", steps[-1] + 4), tmp_path / "log")
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_killed(small_dataset, whole_of_two, tmp_path):
    command = overrides(small_dataset, tmp_path / "run")
    run = Run(command, tmp_path / "log", ranks=2)
    wait_for((tmp_path / "run" / "checkpoints" / "previous.ckpt").exists, run)
    assert run.kill() == [-9, -9], run.output()
    assert 1 <= newest_step(tmp_path / "run") < 12
    finished(command, tmp_path / "log", ranks=2)
    assert_same_outcome(tmp_path / "run", whole_of_two)


def fake_slurm(folder: Path) -> dict[str, str]:
    """Environment of job 4711 with a `scontrol` that writes down its arguments."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.log\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"SLURM_JOB_ID": "4711", "PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_signal_to_one_of_two_processes_stops_both_at_the_same_step(small_dataset, whole_of_two, tmp_path):
    """SIGUSR1 to the one that does not write checkpoints, under Slurm, between two checkpoints."""
    command = overrides(small_dataset, tmp_path / "run")
    seldom = [*command, "trainer.checkpoint_every_steps=1000", "trainer.keep_every_steps=1000"]
    run = Run(seldom, tmp_path / "log", ranks=2, environment=fake_slurm(tmp_path))
    wait_for((tmp_path / "run" / "checkpoints" / "best.ckpt").exists, run)
    os.kill(run.processes[1].pid, signal.SIGUSR1)
    assert run.wait() == [75, 0], run.output() + run.output(1)
    step = newest_step(tmp_path / "run")
    assert 3 <= step < 12
    assert f"stopped at step {step} by SIGUSR1; start again to continue\n" in run.output()
    assert "stopped at step" not in run.output(1)
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"
    finished(seldom, tmp_path / "log", ranks=2)
    assert_same_history(tmp_path / "run", whole_of_two)
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_training_checkpoint(f / "checkpoints" / name) for f in (tmp_path / "run", whole_of_two))
        assert one["global_step"] == other["global_step"]
        assert all(torch.equal(tensor, other["state_dict"][key]) for key, tensor in one["state_dict"].items())


def linger_in_validation() -> None:
    """The first validation batch of the process waits for a signal."""
    step, build = CSMTrainingModule.validation_step, TrainingLoop.__init__
    loops: list[TrainingLoop] = []

    def remember(self: TrainingLoop, *arguments: object) -> None:
        loops.append(self)
        build(self, *arguments)

    def validation_step(self: CSMTrainingModule, *arguments: object) -> Tensor:
        sums = step(self, *arguments)
        print("validating")
        while loops[0].stop.signal is None:
            time.sleep(0.01)
        return sums

    CSMTrainingModule.validation_step, TrainingLoop.__init__ = validation_step, remember


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_run_during_validation(small_dataset, tmp_path):
    """Data workers outlive it; the validation is done anew on resuming; a SIGTERM requeues no job."""
    average = ["trainer.ema_decay=0.9", "trainer.validate_ema=true"]  # in the place of the weights at that moment
    command = [*overrides(small_dataset, tmp_path / "run", 6), *average, "data.num_workers=2"]
    run = Run(command, tmp_path / "log", environment=fake_slurm(tmp_path), before=linger_in_validation)
    wait_for(lambda: run.logs[0].exists() and "validating" in run.output(), run)
    os.killpg(run.processes[0].pid, signal.SIGTERM)
    assert run.wait() == [75], run.output()
    assert "stopped at step 3 by SIGTERM; start again to continue\n" in run.output()
    assert "Traceback" not in run.output()
    assert not (tmp_path / "scontrol.log").exists() and not (tmp_path / "run" / "export").exists()
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    finished(command, tmp_path / "log")
    finished([*overrides(small_dataset, tmp_path / "whole", 6), *average], tmp_path / "log")
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def count_validations() -> None:
    step = CSMTrainingModule.validation_step

    def validation_step(self: CSMTrainingModule, *arguments: object) -> Tensor:
        print("validating")
        return step(self, *arguments)

    CSMTrainingModule.validation_step = validation_step


@pytest.mark.slow
@pytest.mark.parametrize(("end", "number"), [("max_steps", signal.SIGKILL), ("max_epochs", signal.SIGTERM)])
def test_validation_of_the_last_step_is_done_after_all_and_once(end, number, small_dataset, tmp_path):
    """Stopped in the middle of it, the run has nothing left to train. The last step of the data is validated whatever
    its number."""

    def command(name: str) -> list[str]:
        run = overrides(small_dataset, tmp_path / name, max_steps=3)
        if end == "max_steps":
            return run
        sources = f"+data.sources={{a: {{path: {small_dataset}, max_epochs: 1}}}}"
        return [*run, "data.path=null", sources, "trainer.max_steps=1000", "trainer.val_every_steps=1000"]

    run = Run(command("run"), tmp_path / "log", before=linger_in_validation)
    wait_for(lambda: run.logs[0].exists() and "validating" in run.output(), run)
    os.kill(run.processes[0].pid, number)
    assert run.wait() == [75 if number == signal.SIGTERM else -9], run.output()
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    for validates in (True, False):
        run = Run(command("run"), tmp_path / "log", before=count_validations)
        assert run.wait() == [0], run.output()
        assert ("validating" in run.output()) == validates
    finished(command("whole"), tmp_path / "log")
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def wait_in_vain(is_listening: Event) -> None:
    with signal_handlers(StopRequest(), requeue=False):
        is_listening.set()
        time.sleep(60)


@pytest.mark.slow
def test_second_signal_ends_at_once_but_an_echo_of_the_first_does_not():
    is_listening = server().Event()
    process = server().Process(target=wait_in_vain, args=(is_listening,))
    process.start()
    assert is_listening.wait(60)
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGUSR1)
    process.join(2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == -signal.SIGTERM
