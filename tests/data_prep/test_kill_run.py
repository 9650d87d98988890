"""Kill -9 at random moments of a run over 200 files: running it again gives the result of an uninterrupted run."""

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
from data_prep.execution.run import status
from data_prep.prepare import prepare

pytestmark = pytest.mark.slow

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


def run_and_kill(cfg, more_stages: int, seconds: float) -> bool:
    """Kills a run `seconds` after it has finished that many more stages of units; returns whether it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.prepare"])
    process = context.Process(target=prepare, args=(cfg,))
    before = stages_done(cfg)
    process.start()
    while process.is_alive() and stages_done(cfg) < before + more_stages:
        process.join(0.01)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def stages_done(cfg) -> int:
    """Of all units: markers of stages, see data_prep/execution/unit.py."""
    return len(list((work_folder(cfg) / "units").glob("*/*-*.json")))


def test_killed_at_20_random_moments(recordings, make_config, tmp_path):
    options = {"plan.unit_hours": 20 / 3600, "pack.shard_mb": 0.01, "encode.fit_minutes": 1.0}
    prepare(make_config(recordings, tmp_path / "reference", **options))
    expected = comparable(tmp_path / "reference")

    cfg = make_config(recordings, tmp_path / "out", **options)
    draw = random.Random(1)
    stages, half_written = [], 0
    for _ in range(20):
        # From the first file of the plan to the last stage, and beyond where it gets that far.
        if not run_and_kill(cfg, draw.randrange(5), draw.uniform(0.0, 0.15)):
            break  # a fast machine came to the end
        stages.append(stages_done(cfg))
        half_written += any(work_folder(cfg).rglob("*.partial"))
    print(f"stages of units done at each of {len(stages)} kills: {stages}; {half_written} left a half-written file")
    assert len(stages) >= 15 and len(set(stages)) >= 10  # it did get on, and was killed in many places
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
