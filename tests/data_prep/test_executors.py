"""The executor, the number of workers and the order of units do not affect the dataset."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import soundfile
import submitit
from made_recordings import comparable, noise, turn, write_manifest

from data_prep.config import ExecutorConfig, ExecutorKind, work_folder
from data_prep.execution.fit_codec import fit_codec
from data_prep.execution.run import retry, run, status
from data_prep.execution.slurm import UnitTask
from data_prep.execution.unit import unit_folder
from data_prep.execution.unit_files import ATTEMPTS_FILE
from data_prep.inputs.plan import make_plan
from data_prep.prepare import prepare

pytestmark = pytest.mark.slow

RATE = 8000
OPTIONS = {"plan.unit_hours": 12 / 3600, "pack.shard_mb": 0.005, "encode.fit_minutes": 0.3}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    made = []
    for n in range(24):
        file = folder / f"call{n}.flac"
        soundfile.write(file, noise(2.0 + n / 10, RATE, n), RATE)
        turns = [turn("a", 0.1, 0.9), turn("b", 1.0, 1.9)]
        made.append({"audio": f"call{n}.flac", "group": f"caller {n % 7}", "turns": turns})
    return write_manifest(folder / "calls.jsonl", made)


@pytest.fixture(scope="module")
def expected(manifest, make_config, tmp_path_factory) -> dict[str, bytes]:
    """The dataset as one process makes it."""
    output = tmp_path_factory.mktemp("expected") / "out"
    prepare(make_config(manifest, output, **OPTIONS))
    return comparable(output)


EXECUTORS = {
    "inline": ExecutorConfig(ExecutorKind.inline),
    "2 processes": ExecutorConfig(ExecutorKind.local, workers=2),
    "4 processes": ExecutorConfig(ExecutorKind.local, workers=4),
    "ray": ExecutorConfig(ExecutorKind.ray, workers=2),
    "slurm": ExecutorConfig(ExecutorKind.slurm, workers=2, slurm_cluster="local"),
}


@pytest.mark.parametrize("name", EXECUTORS)
def test_same_bytes_whoever_runs_it_and_in_whatever_order(name, manifest, make_config, expected, tmp_path):
    shuffled = manifest.read_text().splitlines()
    random.Random(name).shuffle(shuffled)
    other_order = manifest.with_name(f"{name}.jsonl")
    other_order.write_text("\n".join(shuffled))
    cfg = make_config(other_order, tmp_path / "out", **OPTIONS)
    cfg.executor = EXECUTORS[name]
    cfg.pack.workers = cfg.executor.workers or 1
    dataset, summary = prepare(cfg)
    assert summary.units >= 4 and not summary.failures and summary.already_done == 0
    assert len(dataset.shards) >= 3
    assert comparable(tmp_path / "out") == expected


def test_what_crashed_is_left_out_and_retry_brings_it_in(manifest, make_config, expected, tmp_path):
    cfg = make_config(manifest, tmp_path / "out", **OPTIONS)
    plan = make_plan(cfg)
    unit = plan.units[0].id
    victim = plan.recordings(unit)[0].id
    folder = unit_folder(work_folder(cfg), unit)
    folder.mkdir(parents=True)
    # What three workers leave that died of it, see test_unit.py.
    (folder / ATTEMPTS_FILE).write_text(3 * (json.dumps({"begin": [victim], "stage": "vad"}) + "\n"))
    assert run(cfg).rejected == {"crashed": 1}
    assert status(cfg).rejected == {"crashed": 1} and status(cfg).retryable == 1
    assert retry(cfg) == [victim]
    assert run(cfg).rejected == {} and status(cfg).rejected == {}
    prepare(cfg)
    assert comparable(tmp_path / "out") == expected


def test_a_slurm_task_that_is_stopped_is_queued_again_and_goes_on(manifest, make_config, tmp_path):
    """As at its time limit: submitit's signal in the middle of the work, through its local executor."""
    options = {**OPTIONS, "limit": 12, "score.dnsmos": True}  # which takes its time
    prepare(make_config(manifest, tmp_path / "reference", **options))
    cfg = make_config(manifest, tmp_path / "out", **options)
    plan = make_plan(cfg)
    work = work_folder(cfg)
    fit_codec(cfg, plan, work)
    job = submitit.AutoExecutor(tmp_path / "slurm", cluster="local").submit(UnitTask(), cfg, [u.id for u in plan.units])
    deadline = time.monotonic() + 120
    while not list((work / "units").glob("*/done.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    controller = job._process.pid
    (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    outcomes = job.result()
    assert job.paths.stdout.read_text().count("Starting with") == 2
    assert [outcome.unit for outcome in outcomes] == [unit.id for unit in plan.units]
    assert outcomes[0].repeated == [] and outcomes[-1].repeated  # some was done before it was stopped, the rest after
    prepare(cfg)
    assert comparable(tmp_path / "out") == comparable(tmp_path / "reference")
