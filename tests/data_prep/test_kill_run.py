"""Kill -9 at random moments of a run over 200 files: running it again gives what an uninterrupted run gives."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import soundfile
from made_recordings import comparable, noise, turn, write_manifest

from data_prep.config import ExecutorConfig, ExecutorKind, work_folder
from data_prep.dataset.verify import verify
from data_prep.prepare import prepare
from data_prep.run import status

RATE = 8000
FILES = 200


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    rows = []
    for n in range(FILES):
        soundfile.write(folder / f"call{n}.flac", noise(2.0, RATE, n), RATE)
        rows.append({"audio": f"call{n}.flac", "turns": [turn("a", 0.1, 0.9), turn("b", 1.0, 1.9)]})
    return write_manifest(folder / "calls.jsonl", rows)


def run_and_kill(cfg, seconds: float) -> bool:
    """Whether it was killed before its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.prepare"])
    process = context.Process(target=prepare, args=(cfg,))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("seed", [1])
def test_killed_at_20_random_moments(recordings, make_config, tmp_path, seed):
    options = {"plan.unit_hours": 20 / 3600, "pack.shard_mb": 0.01, "encode.fit_minutes": 1.0}
    reference = make_config(recordings, tmp_path / "reference", **options)
    begun = time.monotonic()
    prepare(reference)
    whole = time.monotonic() - begun
    expected = comparable(tmp_path / "reference")

    cfg = make_config(recordings, tmp_path / "out", **options)
    draw = random.Random(seed)
    moments, partial_files = [], 0
    for _ in range(20):
        # Moments of what is left to do, from its first file to its last.
        if not run_and_kill(cfg, draw.uniform(0.05, 0.25) * whole + 0.3) or (tmp_path / "out").exists():
            break
        if work_folder(cfg).is_dir():
            partial_files += any(work_folder(cfg).rglob("*.partial"))
            moments.append(len(list(work_folder(cfg).rglob("done.json"))))
    print(f"{len(moments)} kills; units done at each: {moments}; {partial_files} left a half-written file")
    assert len(moments) >= 12 and len(set(moments)) >= 5  # it did get on, and was killed in many places
    if not (tmp_path / "out").exists():
        prepare(cfg)
    assert verify(tmp_path / "out") == []
    assert comparable(tmp_path / "out") == expected
    assert status(cfg).rejected == {}


def test_killed_parent_takes_its_workers_along(recordings, make_config, tmp_path):
    options = {"plan.unit_hours": 20 / 3600, "pack.shard_mb": 0.01, "encode.fit_minutes": 1.0, "limit": 60}
    prepare(make_config(recordings, tmp_path / "reference", **options))
    cfg = make_config(recordings, tmp_path / "out", **options)
    cfg.executor = ExecutorConfig(ExecutorKind.local, workers=2)
    units = tmp_path / "out.work" / "units"

    process = multiprocessing.get_context("forkserver").Process(target=prepare, args=(cfg,))
    process.start()
    deadline = time.monotonic() + 120
    while not any(units.glob("*/vad-*.json")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    prepare(cfg)
    assert comparable(tmp_path / "out") == comparable(tmp_path / "reference")
