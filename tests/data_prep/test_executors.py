"""Who runs the units, how many at once and in what order changes nothing in the dataset."""

import random
from pathlib import Path

import pytest
import soundfile
from made_recordings import comparable, noise, turn, write_manifest

from data_prep.config import ExecutorConfig, ExecutorKind, work_folder
from data_prep.plan import make_plan
from data_prep.prepare import prepare
from data_prep.run import retry, run, status

RATE = 8000
OPTIONS = {"plan.unit_hours": 12 / 3600, "pack.shard_mb": 0.005, "encode.fit_minutes": 0.3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("recordings")
    made = []
    for n in range(24):
        file = folder / f"call{n}.flac"
        soundfile.write(file, noise(2.0 + n / 10, RATE, n), RATE)
        turns = [turn("a", 0.1, 0.9), turn("b", 1.0, 1.9)]
        made.append({"audio": f"call{n}.flac", "group": f"caller {n % 7}", "turns": turns})
    write_manifest(folder / "calls.jsonl", made)
    return made


@pytest.fixture(scope="module")
def manifest(rows, tmp_path_factory) -> Path:
    (folder,) = [path.parent for path in tmp_path_factory.getbasetemp().rglob("calls.jsonl") if len(rows) == 24]
    return folder / "calls.jsonl"


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
def test_same_bytes_whoever_runs_it_and_in_whatever_order(name, rows, manifest, make_config, expected, tmp_path):
    shuffled = list(rows)
    random.Random(name).shuffle(shuffled)
    other_order = write_manifest(manifest.with_name(f"{name}.jsonl"), shuffled)
    cfg = make_config(other_order, tmp_path / "out", **OPTIONS)
    cfg.executor = EXECUTORS[name]
    cfg.pack.workers = cfg.executor.workers or 1
    dataset, summary = prepare(cfg)
    assert summary.units >= 4 and not summary.failures and summary.already_done == 0
    assert len([shard for shard in dataset.shards]) >= 3
    assert comparable(tmp_path / "out") == expected


def test_a_worker_that_dies_is_replaced_and_its_unit_goes_on(manifest, make_config, expected, tmp_path):
    """One recording's worker is killed from outside, three times: it is left out, then `retry` brings it in."""
    cfg = make_config(manifest, tmp_path / "out", **OPTIONS)
    make_plan(cfg)
    work = work_folder(cfg)
    cfg.executor = ExecutorConfig(ExecutorKind.local, workers=1)
    # Three deaths on one recording, as its unit's folder tells of them.
    unit = next(iter(sorted(work.glob("*.json"))), None) and _first_unit(cfg)
    folder = work / "units" / unit.id
    folder.mkdir(parents=True)
    victim = _recordings(cfg, unit.id)[0].id
    (folder / "attempts.jsonl").write_text(f'{{"begin": ["{victim}"], "stage": "vad"}}\n' * 3)
    summary = run(cfg)
    assert summary.rejected == {"crashed": 1}
    assert status(cfg).rejected == {"crashed": 1} and status(cfg).again == 1
    assert retry(cfg) == [victim]
    assert run(cfg).rejected == {} and status(cfg).rejected == {}
    prepare(cfg)
    assert comparable(tmp_path / "out") == expected


def _first_unit(cfg):
    from data_prep.plan import load_plan

    return load_plan(work_folder(cfg)).units[0]


def _recordings(cfg, unit: str):
    from data_prep.plan import load_plan

    return load_plan(work_folder(cfg)).recordings(unit)
