"""GPUs for the workers of each executor, and requests that are refused; no GPU is needed."""

import re

import pytest

from data_prep.config import DataPrepConfig, ExecutorConfig, ExecutorKind
from data_prep.execution.gpus import check_gpus, gpus_of, visible_gpus
from data_prep.execution.local import number_of_workers
from data_prep.execution.run import run
from data_prep.execution.slurm import task_parameters


def config(kind: ExecutorKind, output: str = "out", **options) -> DataPrepConfig:
    return DataPrepConfig(output=output, executor=ExecutorConfig(kind, **options))


@pytest.mark.parametrize(
    ("share", "workers", "given"),
    [
        (0.5, 4, ["4", "4", "GPU-7f", "GPU-7f"]),
        (0.4, 4, ["4", "4", "GPU-7f", "GPU-7f"]),  # three would be 1.2 of a GPU
        (0.3, 6, ["4", "4", "4", "GPU-7f", "GPU-7f", "GPU-7f"]),
        (1.0, 2, ["4", "GPU-7f"]),
        (2.0, 1, ["4,GPU-7f"]),
    ],
)
def test_local_workers_share_the_gpus_that_may_be_used(share, workers, given, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7f")
    cfg = config(ExecutorKind.local, gpus_per_worker=share)
    check_gpus(cfg)
    assert number_of_workers(cfg) == workers
    assert [",".join(gpus_of(slot, share, visible_gpus())) for slot in range(workers)] == given


def test_more_workers_than_shares_take_turns(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    cfg = config(ExecutorKind.local, workers=8, gpus_per_worker=1)
    check_gpus(cfg)
    assert number_of_workers(cfg) == 8
    assert [gpus_of(slot, 1, visible_gpus()) for slot in range(8)] == [[str(n % 3)] for n in range(8)]


@pytest.mark.parametrize(("allowed", "gpus"), [("", []), ("-1", []), ("2, 5", ["2", "5"])])
def test_gpus_that_the_process_may_use(allowed, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(("share", "gpus"), [(0.0, None), (0.25, 1), (0.5, 1), (1.0, 1), (2.0, 2)])
def test_slurm_tasks_get_whole_gpus(share, gpus):
    parameters = task_parameters(ExecutorConfig(ExecutorKind.slurm, gpus_per_worker=share, cpus_per_worker=6))
    assert parameters.get("gpus_per_node") == gpus and parameters["cpus_per_task"] == 6


@pytest.mark.parametrize("kind", [ExecutorKind.local, ExecutorKind.ray, ExecutorKind.slurm])
def test_models_on_gpus_in_workers_without_any_are_refused(kind, tmp_path):
    cfg = config(kind, str(tmp_path / "out"))
    cfg.transcribe.device, cfg.codec.device = "cuda:0", "cuda"
    expected = r"transcribe\.device=cuda:0, codec\.device=cuda with executor\.gpus_per_worker=0: .* set executor"
    with pytest.raises(ValueError, match=expected) as raised:
        run(cfg)
    assert "\n" not in str(raised.value)


def test_one_worker_or_this_process_may_have_the_gpu_unasked():
    for cfg in (config(ExecutorKind.inline), config(ExecutorKind.local, workers=1)):
        cfg.codec.device = "cuda"
        check_gpus(cfg)


@pytest.mark.parametrize(
    ("kind", "share", "message"),
    [
        (ExecutorKind.local, 1, "executor.gpus_per_worker=1, and this machine has 0 GPUs"),
        (ExecutorKind.ray, 1.5, "executor.gpus_per_worker=1.5 must be a share of one GPU, or a whole number"),
        (ExecutorKind.slurm, -1.0, "executor.gpus_per_worker=-1 must be"),
    ],
)
def test_shares_that_cannot_be_given_are_refused(kind, share, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=re.escape(message)):
        check_gpus(config(kind, gpus_per_worker=float(share)))
