"""Damage to a checkpoint that only some ranks see, and disks that are full for only some: two processes, each with half
of every tensor, do the same about it."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from csm.checkpoint.checksums import check_archive
from csm.checkpoint.resume import CheckpointFallback, verify_whole
from csm.checkpoint.sharded import OPTIMIZER, WEIGHTS, read_sharded, write_sharded
from csm.errors import user_errors
from csm.formats.open import open_checkpoint
from tests.conftest import ROOT, TINY_OVERRIDES
from tests.training.forked import Run, finished, launcher_variables, server

STEPS = ["trainer.val_every_steps=100", "trainer.checkpoint_every_steps=2", "trainer.max_steps=4", "ckpt_path=last"]
STEPS += ["data.global_batch_size=2", "data.micro_batch_size=1", "optim.schedule=wsd", "optim.warmup_steps=1"]


def overrides(dataset: Path, run_dir: Path) -> list[str]:
    return [*TINY_OVERRIDES, *STEPS, f"data.path={dataset}", f"run_dir={run_dir}"]


@pytest.fixture(scope="module")
def trained(small_dataset, tmp_path_factory) -> Path:
    """run_dir of four steps of two processes: checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("sharded")
    finished(overrides(small_dataset, folder / "run"), folder / "log", ranks=2, strategy="fsdp")
    return folder / "run"


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def damage(file: Path, how: str, place: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    if how == "one bit":
        content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content[: len(content) // 2] if how == "cut short" else content)


def inside_a_tensor(file: Path, part: str) -> int:
    """Offset of the middle byte of the largest tensor that a file has of `part`."""
    index = dcp.FileSystemReader(file.parent).read_metadata()
    records = [
        (record.length, record.offset)
        for key, record in index.storage_data.items()
        if record.relative_path == file.name and key.fqn.startswith(part)
    ]
    length, offset = max(records)
    return offset + length // 2


def assert_same(first: Path, second: Path) -> None:
    for part in (WEIGHTS, OPTIMIZER):
        (content, tensors), (other, others) = read_sharded(first, part), read_sharded(second, part)
        assert content["global_step"] == other["global_step"] and tensors.keys() == others.keys() != set()
        assert all(torch.equal(tensor.read(), others[name].read()) for name, tensor in tensors.items())


def check_fallback(dataset: Path, trained: Path, run_dir: Path, reason: str) -> None:
    """Two processes continue from the one before, and end up where the run did that met no damage."""
    last, previous = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    run = finished(overrides(dataset, run_dir), run_dir.parent / "log", ranks=2, strategy="fsdp")
    (warning,) = [line for line in run.output().splitlines() if "continuing from the one before it" in line]
    assert f"checkpoint {last} is damaged: {reason}" in warning and str(previous) in warning
    assert_same(last, trained / "checkpoints" / "last.ckpt")
    assert_same(previous, trained / "checkpoints" / "previous.ckpt")  # the damaged one has not taken its place


@pytest.mark.slow
def test_bit_that_one_rank_reads_takes_both_to_the_checkpoint_before(small_dataset, trained, run_dir):
    file = run_dir / "checkpoints" / "last.ckpt" / "__1_0.distcp"
    damage(file, "one bit", inside_a_tensor(file, OPTIMIZER))
    check_fallback(small_dataset, trained, run_dir, f"__1_0.distcp, tensor {OPTIMIZER}.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("__0_0.distcp", "one bit", "__0_0.distcp, tensor state_dict."),
        ("__1_0.distcp", "cut short", "__1_0.distcp is cut short"),
        ("meta.pt", "one bit", "meta.pt: the content of its record"),
        (".metadata", "one bit", "the content of .metadata has changed"),
    ],
)
def test_damage_to_any_file_takes_both_ranks_to_the_checkpoint_before(
    name, how, reason, small_dataset, trained, run_dir
):
    file = run_dir / "checkpoints" / "last.ckpt" / name
    damage(file, how, inside_a_tensor(file, WEIGHTS) if name == "__0_0.distcp" else None)
    check_fallback(small_dataset, trained, run_dir, reason)


@pytest.mark.slow
def test_no_checkpoint_left_ends_both_ranks_with_one_line(small_dataset, run_dir, tmp_path):
    for name in ("last.ckpt", "previous.ckpt"):
        file = run_dir / "checkpoints" / name / "__1_0.distcp"
        damage(file, "one bit", inside_a_tensor(file, WEIGHTS))
    run = Run(overrides(small_dataset, run_dir), tmp_path / "log", ranks=2, strategy="fsdp")
    assert run.wait() == [2, 2], run.output()
    for rank in range(2):
        (error,) = [line for line in run.output(rank).splitlines() if line.startswith("error: ")]
        assert "previous.ckpt is damaged: __1_0.distcp, tensor " in error and "copy it again" in error
        assert "Traceback" not in run.output(rank)


@pytest.mark.slow
def test_one_process_that_takes_over_falls_back_too(small_dataset, trained, run_dir, tmp_path):
    file = run_dir / "checkpoints" / "last.ckpt" / "__1_0.distcp"
    damage(file, "one bit", inside_a_tensor(file, WEIGHTS))
    run = finished(overrides(small_dataset, run_dir), tmp_path / "log")
    assert "continuing from the one before it" in run.output()
    verify_whole(run_dir / "checkpoints" / "last.ckpt")
    assert_same(*(folder / "checkpoints" / "previous.ckpt" for folder in (run_dir, trained)))


# ------------------------------------------------------------------------------------------------ full disks


def small_files_only() -> None:
    """A limit on the size of files is what a full disk is to the program: a write that fails in the middle."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def small_files_for_rank_1() -> None:
    if os.environ["RANK"] == "1":
        small_files_only()


@pytest.mark.slow
def test_rank_that_cannot_write_its_part_ends_the_run(small_dataset, trained, run_dir, tmp_path):
    command = [*overrides(small_dataset, run_dir), "trainer.max_steps=50"]
    run = Run(command, tmp_path / "log", ranks=2, before=small_files_for_rank_1, strategy="fsdp")
    assert run.wait() == [2, 2], run.output() + run.output(1)
    errors = [[line for line in run.output(rank).splitlines() if line.startswith("error: ")] for rank in range(2)]
    last = run_dir / "checkpoints" / "last.ckpt"
    assert len(errors[0]) == len(errors[1]) == 1
    assert f"checkpoint {last} cannot be written (rank 1: File too large)" in errors[0][0]
    assert "another process could not write" in errors[1][0]
    assert "Traceback" not in run.output() + run.output(1)
    for name in ("last.ckpt", "previous.ckpt"):
        assert_same(*(folder / "checkpoints" / name for folder in (run_dir, trained)))


# ------------------------------------------------------------------------------------------------- DeepSpeed


def run_zero(overrides: list[str], before: Callable[[], None] | None = None) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of two processes under ZeRO 2; `before` is called in the second."""
    processes = []
    variables = {**os.environ, **launcher_variables(2), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    for rank in range(2):
        own = {**variables, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(ROOT / "tests" / "training" / "zero_on_cpu.py"), *overrides]
        command += ["strategy=deepspeed_zero2", "trainer.devices=2"]
        process = subprocess.Popen(
            command,
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=before if rank else None,
        )
        processes.append(process)
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
def test_deepspeed_on_a_full_disk_and_with_a_flipped_bit(small_dataset, tmp_path):
    command = overrides(small_dataset, tmp_path / "run")
    codes, outputs = run_zero(command)
    assert codes == [0, 0], outputs[0]
    whole = open_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").load_model().state_dict()

    codes, outputs = run_zero([*command, "trainer.max_steps=50"], before=small_files_only)
    assert codes == [1, 1] and "Traceback" in outputs[1]  # the script, unlike train.py, leaves errors as they are
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"OSError: checkpoint {last} cannot be written (rank 1: File too large)" in outputs[0]
    assert "OSError: another process could not write" in outputs[1]

    (file,) = (last / "checkpoint").glob("*rank_1*_optim_states.pt")
    damage(file, "one bit")
    codes, outputs = run_zero(command)
    assert codes == [0, 0], outputs[0]
    (warning,) = [line for line in "".join(outputs).splitlines() if "continuing from the one before it" in line]
    assert f"{last} is damaged: {file.name}: the content of its record" in warning
    weights = open_checkpoint(last).load_model().state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights.items())


# -------------------------------------------------------------------------------------------- two bare processes


def in_two_processes(task: Callable[[int, Path], None], folder: Path) -> list[str]:
    """Runs `task(rank, folder)` in two processes of a group; what they print, and `error: ` lines."""
    variables = launcher_variables(2)
    processes = [server().Process(target=_task, args=(task, rank, folder, variables)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "still running after a minute"
    return [(folder / f"output-{rank}").read_text() for rank in range(2)]


def _task(task: Callable[[int, Path], None], rank: int, folder: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables | {"RANK": str(rank)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    descriptor = os.open(folder / f"output-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with user_errors():
        task(rank, folder)
        dist.barrier()


def write_with_large_content(rank: int, folder: Path) -> None:
    if rank == 0:
        small_files_only()
    write_sharded(folder / "last.ckpt.partial", {WEIGHTS: {"weight": torch.ones(5)}}, {"csm": torch.ones(100_000)})


@pytest.mark.slow
def test_meta_file_that_cannot_be_written_is_an_error_on_all_ranks(tmp_path):
    for output in in_two_processes(write_with_large_content, tmp_path):
        assert f"error: checkpoint {tmp_path / 'last.ckpt'} cannot be written (rank 0: File too large)" in output


def load_own_files(rank: int, folder: Path) -> None:
    candidates = CheckpointFallback([folder / f"{name}-{rank}.ckpt" for name in ("last", "previous")], print)
    candidates.select()
    print("content", candidates.load(torch.load)["of"])


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [("last-1",), ("last-0",), ("last-0", "previous-1")])
def test_ranks_agree_on_a_checkpoint_that_all_of_them_can_read(damaged, tmp_path):
    """Each rank has files of its own, as where a disk is at fault."""
    for name in ("last", "previous"):
        for rank in range(2):
            torch.save({"of": name, "weights": torch.ones(5000)}, tmp_path / f"{name}-{rank}.ckpt")
    for name in damaged:
        damage(tmp_path / f"{name}.ckpt", "one bit")
    for output in in_two_processes(load_own_files, tmp_path):
        if len(damaged) == 1:
            assert "content previous" in output
        else:
            assert "error: " in output and "previous-1.ckpt is damaged" in output


# ------------------------------------------------------------------------------------------------ single bits


def test_no_bit_changes_what_is_loaded():
    """Every seventh bit: it is noticed, or makes no difference."""
    torch.manual_seed(0)
    stream, expected = io.BytesIO(), {"weight": torch.randn(20), "step": 5}
    torch.save(expected, stream)
    content, noticed = bytearray(stream.getvalue()), 0
    for place in range(0, 8 * len(content), 7):
        content[place // 8] ^= 1 << place % 8
        damaged = bytes(content)
        content[place // 8] ^= 1 << place % 8
        try:
            check_archive(io.BytesIO(damaged))
            found = torch.load(io.BytesIO(damaged))
            assert torch.equal(found["weight"], expected["weight"]) and found["step"] == 5
        except (ValueError, RuntimeError):  # torch's own: it cannot read it
            noticed += 1
    assert noticed > 500
