"""Expected curves: the numbers of a run's validations, on the page and in the kept file."""

from __future__ import annotations

import json
import re

import pytest

from csm.training.build import train
from csm.training.loggers import read_lines
from experiments.curves.command import main
from tests.conftest import compose_train


def test_a_run_is_kept_and_drawn(tiny_overrides, tmp_path, capsys):
    words = ["trainer.max_steps=6", "trainer.val_every_steps=3", "trainer.log_every_steps=1", f"run_dir={tmp_path}/run"]
    train(compose_train([*tiny_overrides, *words]))
    kept, docs = tmp_path / "kept", tmp_path / "docs"
    main([str(tmp_path / "run"), "small", "--kept", str(kept), "--docs", str(docs)])
    points = json.loads((kept / "small.json").read_text())["points"]
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    assert [point["step"] for point in points] == [3, 6]
    for point in points:
        steps = range(point["step"] - 2, point["step"] + 1)
        losses = [line["train/loss_c0"] for line in lines if line["step"] in steps and "train/loss_c0" in line]
        assert len(losses) == 3 and point["train/loss_c0"] == pytest.approx(sum(losses) / 3, abs=1e-4)
        [held_out] = [line["val/loss_c0"] for line in lines if line["step"] == point["step"] and "val/loss_c0" in line]
        assert point["val/loss_c0"] == pytest.approx(held_out, abs=1e-4)

    text = (docs / "experiments/curves.md").read_text()
    assert f"| {points[1]['train/loss_c0']:.2f} | {points[1]['val/loss_c0']:.2f} |" in text and "## small" in text
    plot = docs / "experiments" / re.search(r"!\[[^]]*\]\(([^)]+)\)", text)[1]
    assert plot.read_text().count("<path d='M") > 4 and "nan" not in plot.read_text()

    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "other", "--kept", str(kept), "--docs", str(docs)])
    assert stopped.value.code == 2 and "holds no validation" in capsys.readouterr().err
