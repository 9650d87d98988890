"""An experiment from the command to the page, on real speech: killed and resumed, in equal time, and misused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csm.training.loggers import read_lines
from experiments.arms.command import main
from experiments.arms.experiment import DESCRIPTION, EXPERIMENTS, read_experiment, words_of
from tests.conftest import ROOT, TINY_OVERRIDES, compose_train

STEPS = 9  # a multiple of the steps between validations
RATIOS = {"1/1": "[loss.decoder_frame_ratio=1]", "1/16": "[loss.decoder_frame_ratio=16]"}


def describe(folder: Path, dataset: Path, **options: object) -> Path:
    """An experiment of two arms on a tiny model, with a checkpoint after every second step."""
    base = [*TINY_OVERRIDES, f"data.path={dataset}", "data.num_workers=0", "trainer.checkpoint_every_steps=2"]
    lines = ["title: Amortization", "question: What does it cost?", "reference: 1/16", f"steps: {STEPS}"]
    lines += ["seeds: [1, 2]", "measures: [c0, others, c0/last, c0/no_text, c0/no_context]"]
    lines += ["base:", *(f"  - {json.dumps(word)}" for word in base)]
    lines += ["arms:", *(f"  {arm}: {words}" for arm, words in RATIOS.items())]
    lines += [f"{name}: {value}" for name, value in options.items()]
    folder.mkdir(exist_ok=True)
    (folder / DESCRIPTION).write_text("\n".join(lines), encoding="utf-8")
    return folder


def command(folder: Path, place: Path) -> list[str]:
    return [str(folder), "--runs", str(place / "runs"), "--docs", str(place / "docs")]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def without_times(found: dict) -> dict:
    """Everything but what a clock has said."""
    text = json.dumps(found)
    return json.loads(re.sub(r'"\w+_seconds(_per_step)?": [\d.e-]+', '"s": 0', text))


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(small_dataset, tmp_path):
    killed = describe(tmp_path / "killed", small_dataset)
    words = [sys.executable, "-m", "experiments.arms", *command(killed, tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    second = tmp_path / "runs/killed" / f"1-16-{STEPS}steps-seed1"
    deadline = time.monotonic() + 600
    while not (second / "metrics.jsonl").is_file() or len(read_lines(second / "metrics.jsonl")) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = second.with_name(f"1-1-{STEPS}steps-seed1")
    trained = (first / "export" / "model.safetensors").stat().st_mtime_ns
    assert not (second / "training.json").exists()
    subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (first / "export" / "model.safetensors").stat().st_mtime_ns == trained  # not done again

    calm = describe(tmp_path / "calm", small_dataset)
    main(command(calm, tmp_path))
    assert without_times(results(killed)) == without_times(results(calm))
    check_results(results(calm))
    check_page(calm, tmp_path)


def check_results(found: dict) -> None:
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [(arm, seed) for seed in (1, 2) for arm in RATIOS]
    assert list(found["comparisons"]) == ["steps"]
    measures = found["comparisons"]["steps"]["measures"]
    for measure, block in measures.items():
        by_arm = {arm: [run for run in found["runs"] if run["arm"] == arm] for arm in RATIOS}
        group, _, view = measure.partition("/")
        column = 1 + ("c0", "c1-7", "others").index(group)
        for arm, mean in block["means"].items():
            items = [row for run in by_arm[arm] for row in run["scores"][view or "whole"].values()]
            frames, nats = sum(row[0] for row in items), sum(row[column] for row in items)
            assert mean["value"] == pytest.approx(nats / frames, rel=1e-4)
        difference = block["differences"]["1/1"]
        expected = block["means"]["1/1"]["value"] - block["means"]["1/16"]["value"]
        assert difference["value"] == pytest.approx(expected, abs=1e-4)
        assert difference["low"] <= difference["value"] <= difference["high"]
    for run in found["runs"]:  # the run's own validation, in other code, found the same losses at the last step
        last = [record for record in run["curves"] if "val/loss_c0" in record][-1]
        rows = run["scores"]["whole"].values()
        frames = sum(row[0] for row in rows)
        assert last["step"] == STEPS
        assert sum(row[1] for row in rows) / frames == pytest.approx(last["val/loss_c0"], rel=1e-4)
        assert sum(row[3] for row in rows) / frames == pytest.approx(last["val/loss_decoder"], rel=1e-4)
        assert run["processor_seconds_per_step"] > 0
    whole, last_turns = (sum(r[0] for r in found["runs"][0]["scores"][view].values()) for view in ("whole", "last"))
    assert 0 < last_turns < whole
    assert measures["c0/no_text"]["means"]["1/16"]["value"] != measures["c0"]["means"]["1/16"]["value"]


def check_page(folder: Path, place: Path) -> None:
    page, plot = place / "docs/experiments" / f"{folder.name}.md", place / f"docs/images/experiment_{folder.name}.svg"
    text, drawn = page.read_text(encoding="utf-8"), plot.read_text(encoding="utf-8")
    for part in ("# Amortization", "**Question.** What does it cost?", "codebook 0, turns without text", "PyTorch"):
        assert part in text
    assert re.search(r"codebook 0: (no arm|\*1/1\* [+\N{MINUS SIGN}]0\.\d{3} \()", text)
    assert (page.parent / re.search(r"!\[[^]]*\]\(([^)]+)\)", text)[1]).resolve() == plot.resolve()
    assert drawn.count("<circle") > 10 and "nan" not in drawn
    (folder / "remarks.md").write_text("By hand.\n", encoding="utf-8")
    page.unlink()
    main([*command(folder, place), "--page"])
    assert page.read_text(encoding="utf-8").replace("## Remarks\n\nBy hand.\n\n", "") == text
    assert plot.read_text(encoding="utf-8") == drawn


@pytest.mark.slow
def test_in_equal_time_the_cheaper_arm_takes_more_steps(small_dataset, tmp_path, capsys):
    """Costs of a step are written over the measured ones, which another program on the machine can turn around."""
    folder = describe(tmp_path / "timed", small_dataset)
    main(command(folder, tmp_path))
    for path in (tmp_path / "runs/timed").glob("*/training.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["processor_seconds_per_step"] > 0
        record["processor_seconds_per_step"] = 0.02 if record["arm"] == "1/16" else 0.03
        path.write_text(json.dumps(record), encoding="utf-8")
    describe(folder, small_dataset, equal_time="true")
    main(command(folder, tmp_path))
    found = results(folder)
    arms = found["comparisons"]["time"]["arms"]
    assert arms["1/16"]["steps"] == STEPS and arms["1/1"]["steps"] == STEPS * 2 // 3
    runs = [(run["arm"], run["steps"], run["seed"]) for run in found["runs"]]
    assert len(runs) == len(set(runs)) == 6  # the reference's two trainings are part of both comparisons
    text = (tmp_path / "docs/experiments/timed.md").read_text(encoding="utf-8")
    assert "## At equal steps" in text and "## In equal processor time" in text

    with pytest.raises(SystemExit) as ended:
        main([*command(folder, tmp_path), "optim.lr=1e-4"])
    assert ended.value.code == 2
    assert "holds a training with other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": "[c0, c9]"}, "measure 'c9'"),
        ({"measures": "[c0/loud]"}, "measure 'c0/loud'"),
        ({"reference": "1/2"}, "reference=1/2 must be one of them"),
        ({"seeds": "[1]"}, "two or more different"),
        ({"stepps": "3"}, "stepps"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(options, message, small_dataset, tmp_path, capsys):
    folder = describe(tmp_path / "wrong", small_dataset)
    kept = [
        line
        for line in (folder / DESCRIPTION).read_text(encoding="utf-8").splitlines()
        if line.partition(":")[0] not in options
    ]
    lines = [*kept, *(f"{name}: {value}" for name, value in options.items())]
    (folder / DESCRIPTION).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(command(folder, tmp_path))
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_experiment_is_told_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "amortization" in capsys.readouterr().err


NAMES = sorted(path.parent.name for path in EXPERIMENTS.glob(f"*/{DESCRIPTION}"))


@pytest.mark.parametrize("name", NAMES)
def test_every_description_composes_and_its_arms_differ(name):
    experiment = read_experiment(EXPERIMENTS / name)
    assert len(experiment.seeds) >= 3
    arms = [compose_train([*words_of(experiment, arm, 5, 1, []), "run_dir=x"]) for arm in experiment.arms]
    assert all(first != second for place, first in enumerate(arms) for second in arms[:place])


@pytest.mark.parametrize("name", [name for name in NAMES if (EXPERIMENTS / name / "results.json").is_file()])
def test_pages_are_those_of_their_results(name, tmp_path):
    main([name, "--page", "--docs", str(tmp_path)])
    for file in (f"experiments/{name}.md", f"images/experiment_{name}.svg"):
        assert (tmp_path / file).read_text(encoding="utf-8") == (ROOT / "docs" / file).read_text(encoding="utf-8")
