"""A killed `pack` leaves nothing that looks like a dataset, and running it again gives the same result."""

import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
from made_recordings import comparable, noise, turn, write_manifest

from csm.data.dataset import ShardedDataset
from data_prep.config import DataPrepConfig
from data_prep.dataset.verify import verify
from data_prep.execution.run import run
from data_prep.inputs.plan import make_plan
from data_prep.packing.pack import pack


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    rows = []
    for n in range(12):
        soundfile.write(folder / f"call{n}.flac", noise(8.0, 16000, n), 16000)
        rows.append({"audio": f"call{n}.flac", "turns": [turn("ab"[i % 2], i, i + 0.9) for i in range(8)]})
    return write_manifest(folder / "calls.jsonl", rows)


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.BaseContext:
    """Starts processes that have the program loaded already, so that a test can start many."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.packing.pack"])
    return context


def appears(path: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(path.glob(pattern))


def kill_when(server, cfg: DataPrepConfig, moment: Callable[[], bool]) -> int:
    """Runs `pack(cfg)` in a process and sends SIGKILL at `moment`; returns the process's exit code."""
    process = server.Process(target=pack, args=(cfg,))
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and not moment():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


def moments(out: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    partial = out.with_name("out.partial")
    yield "folder made", partial.exists
    yield "codec saved", appears(partial, "codec.safetensors")
    yield "making conversations", appears(partial, "staging/*")
    yield "writing shards", appears(partial, "*000003.tar")
    yield "index written", appears(partial, "index.parquet")
    yield "description written", appears(partial, "dataset.json")
    yield "renamed", appears(out, "dataset.json")


@pytest.fixture(scope="module")
def units(calls, make_config, tmp_path_factory) -> Callable[..., DataPrepConfig]:
    """`units(output, **options)`: options to pack units that are done."""
    work = tmp_path_factory.mktemp("units") / "work"

    def make(output: Path, **options) -> DataPrepConfig:
        return make_config(calls, output, work=str(work), **{"pack.shard_mb": 0.002, **options})

    cfg = make(work)
    make_plan(cfg)
    run(cfg)
    return make


@pytest.mark.slow
def test_killed_at_any_moment_then_run_again(units, server, tmp_path):
    pack(units(tmp_path / "reference"))
    expected = comparable(tmp_path / "reference")
    out = tmp_path / "out"
    cfg = units(out)
    killed = 0
    for name, moment in moments(out):
        killed += kill_when(server, cfg, moment) == -signal.SIGKILL
        if out.exists():  # all or nothing
            assert verify(out, 1) == [] and comparable(out) == expected, name
            shutil.rmtree(out)
        else:
            with pytest.raises(FileNotFoundError):
                ShardedDataset(out)
    assert killed >= 3  # the first moments leave much work undone
    pack(cfg)
    assert comparable(out) == expected
    assert not out.with_name("out.partial").exists()


@pytest.mark.slow
def test_killed_while_replacing_leaves_the_old_or_the_new_dataset(units, server, tmp_path):
    out = tmp_path / "out"
    pack(units(out))
    for moment in (
        appears(tmp_path / "out.partial", "staging/*"),
        appears(tmp_path / "out.partial", "dataset.json"),
        (tmp_path / "out.old").exists,
    ):
        kill_when(server, units(out, overwrite=True, **{"conversation.max_turns": 2}), moment)
        if out.exists():
            assert verify(out, 1) == [] and len(ShardedDataset(out)) in (12, 48)
    pack(units(out, overwrite=True, **{"conversation.max_turns": 4}))
    assert len(ShardedDataset(out)) == 24
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_run_that_ended_between_its_two_renames_gets_the_old_dataset_back(units, tmp_path):
    pack(units(tmp_path / "out"))
    (tmp_path / "out").rename(tmp_path / "out.old")
    with pytest.raises(
        ValueError, match=r"already holds a prepared dataset, but no report, which `python -m data_prep rep"
    ):
        pack(units(tmp_path / "out"))
    assert len(ShardedDataset(tmp_path / "out")) == 12
