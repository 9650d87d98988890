"""Processes that Slurm or torchrun starts: they find one another, and train as one process does.

There is no Slurm here. What stands in for srun sets the variables that srun sets; everything after that is real.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm.training.build import train
from tests.conftest import ROOT, compose_train
from tests.training.test_train import command, last_weights

pytestmark = pytest.mark.slow

STEPS = ["trainer.max_steps=2", "trainer.val_every_steps=2", "trainer.checkpoint_every_steps=2"]
STEADY = ["optim.eps=1e-2"]  # updates in proportion to gradients: rounding is not blown up to a full step
ON_CPU = ["trainer=slurm", "trainer.accelerator=cpu", "strategy=ddp"]


@pytest.fixture
def expected(tiny_overrides, tmp_path) -> dict[str, torch.Tensor]:
    train(compose_train([*tiny_overrides, *STEPS, *STEADY, f"run_dir={tmp_path / 'one'}"]))
    return last_weights(tmp_path / "one")


def assert_trained_together(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """Processes on their own would both have the weights of one process, and both have written them."""
    weights = last_weights(folder / "rank0")
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    assert not (folder / "rank1" / "checkpoints").exists()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environment(**variables: object) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{key: str(v) for key, v in variables.items()}}


def test_two_tasks_of_srun(tiny_overrides, tmp_path, expected):
    run_dir = f"run_dir={tmp_path}/rank${{oc.env:SLURM_PROCID}}"
    overrides = [*tiny_overrides, *STEPS, *STEADY, *ON_CPU, run_dir]
    job = {
        "SLURM_JOB_ID": 4711,
        "SLURM_JOB_NAME": "csm",
        "SLURM_NNODES": 1,
        "SLURM_NTASKS": 2,
        "SLURM_NTASKS_PER_NODE": 2,
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    tasks = [
        subprocess.Popen(
            command(overrides),
            env=environment(**job, SLURM_PROCID=rank, SLURM_LOCALID=rank),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for task in tasks:
        _, errors = task.communicate(timeout=300)
        assert task.returncode == 0, errors
    assert_trained_together(tmp_path, expected)


def test_two_processes_of_torchrun(tiny_overrides, tmp_path, expected):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", str(free_port())]
    overrides = [*tiny_overrides, *STEPS, *STEADY, *ON_CPU, f"run_dir={tmp_path}/rank${{oc.env:RANK}}"]
    result = subprocess.run(
        [*launcher, *command(overrides)[1:]], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert_trained_together(tmp_path, expected)


def test_the_trainers_numbers_are_the_jobs(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_NNODES", "4")
    options = compose_train(["experiment=pretrain_1b", "trainer=slurm", "data.path=x"]).trainer
    assert (options.devices, options.num_nodes, options.accelerator, options.precision) == (8, 4, "gpu", "bf16-mixed")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun, in a job of one task per node
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    options = compose_train(["trainer=slurm", "data.path=x"]).trainer
    assert (options.devices, options.num_nodes) == (2, 3)


def test_the_example_job_is_a_script_whose_training_composes():
    script = ROOT / "examples" / "slurm" / "pretrain_1b.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text().replace("\\\n", " ")
    words = next(line for line in text.splitlines() if line.startswith("srun ")).split("train.py")[1].split()
    config = compose_train([word.replace('"$DATA"', "data/all") for word in words])
    assert config.data.path == "data/all" and config.strategy.name.value == "ddp" and config.ckpt_path == "last"
    assert config.trainer.accelerator == "gpu" and "wandb" in config.logger
