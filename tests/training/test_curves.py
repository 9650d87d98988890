"""The page of curves: what a run has logged is drawn where it belongs, and its warnings with it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from csm.cli import main
from csm.curves.page import page, read_run, sample_warnings
from csm.curves.plots import MOST_POINTS, loss_plot
from csm.training.build import train
from csm.training.loggers import JsonLinesLogger
from tests.conftest import compose_train

GOOD = {"rate": 1.0, "ended": 1.0, "end_accuracy": 0.9, "runaway": 0.0, "empty": 0.0, "similarity": 0.8}


def write_run(folder: Path) -> Path:
    """Losses of 40 steps, and samples of four: after the second, speech is faster and ends are lost."""
    logger = JsonLinesLogger(str(folder / "metrics.jsonl"))
    for step in range(1, 41):
        norms = {"train/gradient_norm": 4 / step, "train/gradient_norm_backbone": float("nan")}
        logger.log_metrics({"train/loss_c0": 4 / step, "train/loss_c1_7": 5.0, "train/loss": 9.0, **norms}, step)
        if step % 10 == 0:
            logger.log_metrics({"val/loss_c0": 3.0, "val/loss_c1_7": 5.5}, step)
            worse = {"rate": 1.6, "ended": 0.5, "runaway": 0.5} if step > 20 else {}
            samples = {**GOOD, **worse, **({"rate": float("nan")} if step == 40 else {})}
            logger.log_metrics({f"samples/{name}": value for name, value in samples.items()}, step)
    (folder / "skipped_steps.jsonl").write_text(json.dumps({"step": 12, "ranks": []}) + "\n")
    return folder


def figures(html: str) -> dict[str, str]:
    return {re.search(r"<figcaption>(.*?)</figcaption>", part)[1]: part for part in html.split("<figure>")[1:]}


def test_losses_norms_and_samples_are_drawn_and_warnings_marked(tmp_path):
    run = read_run(write_run(tmp_path))
    found = sample_warnings(run.records)
    assert [step for step, _ in found] == [30, 30, 40]  # where no sample tells the rate, there is no warning about it
    assert found[0][1].startswith("speech has become faster: 1.60") and found[1][1].startswith("the model ends 50%")
    html = page(run)
    assert all(f"<b>step {step}</b>" in html for step in (30, 40)) and "40 steps; 1 skipped" in html
    drawn = figures(html)
    assert len(drawn) == 5 and not any("error rate" in title for title in drawn)  # words were not recognized

    loss = drawn["Loss, nats per frame; validation dashed"]
    assert "codebook 0</span>" in loss and "codebooks 1 to 7</span>" in loss and loss.count("validation") == 3
    first = re.findall(r'<polyline class="c0" points="([^"]*)"', loss)[0].split()
    assert len(first) == 40
    heights = [float(point.split(",")[1]) for point in first]
    assert heights == sorted(heights)  # falling losses go down the page
    assert "step 12: skipped" in loss and loss.count('class="flag"') == 1

    norms = drawn["Gradient norm before clipping"]
    assert len(re.findall(r'<polyline class="c0" points="([^"]*)"', norms)[0].split()) == 40
    assert '<polyline class="c1" points=""' in norms  # not finite in any line

    rate = drawn["Speaking rate relative to the recordings"]
    assert [float(value) for value in re.findall(r"rate (\d\.\d+)</title>", rate)] == [1.0, 1.0, 1.6]
    flagged = re.search(r'<line class="flag" x1="([\d.]+)"[^>]*><title>step 30: speech has become faster', rate)
    spoken = re.search(r'cx="([\d.]+)"[^>]*><title>step 30: rate 1.600', rate)
    assert flagged and spoken and flagged[1] == spoken[1]
    ends = drawn["Ends, share of the samples"]
    assert "step 40: runaway 0.500" in ends and "step 20: ended in time 0.900" in ends


def test_predicted_ends_are_drawn_and_their_loss_marked(tmp_path):
    logger = JsonLinesLogger(str(tmp_path / "metrics.jsonl"))
    for step, training, validation in [(10, 0.5, 0.6), (20, 1.0, 1.0), (30, 0.75, 0.7), (40, 1.0, float("nan"))]:
        logger.log_metrics({"train/loss_c0": 1.0, "train/eos_recall": training}, step)
        logger.log_metrics({"val/eos_recall": validation}, step)
    html = page(read_run(tmp_path))
    ends = figures(html)["Ends of speech predicted, share; validation dashed"]
    curves = dict(re.findall(r'<polyline class="([^"]*)" points="([^"]*)"', ends))
    assert {name: len(points.split()) for name, points in curves.items()} == {"c0": 4, "c0 validation": 3}
    x, y = zip(*(map(float, point.split(",")) for point in curves["c0"].split()), strict=True)
    assert y[1] == y[3] == min(y) and y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.1)  # 1 is the top
    (flag,) = re.findall(r'<line class="flag" x1="([\d.]+)"[^>]*><title>step 30: the model predicts 70%', ends)
    assert float(flag) == x[2]
    assert "<b>step 30</b>: the model predicts 70% of the ends of speech, 100% at step 20" in html


def test_checks_of_labels_are_drawn_with_the_bound(tmp_path):
    logger = JsonLinesLogger(str(tmp_path / "metrics.jsonl"))
    for step, gain, leak in [(10, -0.6, 0.0), (20, float("nan"), 0.0), (30, 0.1, 0.02)]:
        logger.log_metrics({"val/loss_c0": 1.0, "val/shift_gain": gain, "val/leak": leak}, step)
    html = page(read_run(tmp_path))
    assert "<b>step 30</b>: frames beside those of the labels are predicted better, by 0.10 nats" in html
    assert "<b>step 30</b>: what comes later changes the loss of what comes first, by 2%" in html
    assert html.count("<b>step ") == 2
    drawn = figures(html)
    assert len(drawn) == 3  # and the losses
    (shift,) = [part for title, part in drawn.items() if title.startswith("Gain of other shifts")]
    points = re.findall(r'points="([^"]*)"', shift)[0].split()
    first, last = (float(point.split(",")[1]) for point in points)
    (bound,) = re.findall(r'<line class="bound" [^>]*y1="([\d.]+)"', shift)
    assert first > last == float(bound)  # below it, and on it
    (leak,) = [part for title, part in drawn.items() if title.startswith("Change of the loss by what comes later")]
    heights = [float(point.split(",")[1]) for point in re.findall(r'points="([^"]*)"', leak)[0].split()]
    assert heights[0] == heights[1] > heights[2]


def test_names_are_escaped_and_long_runs_thinned(tmp_path):
    folder = tmp_path / "<b>&"
    folder.mkdir()
    html = page(read_run(write_run(folder)))
    assert "<b>&" not in html and "&lt;b&gt;&amp;" in html
    records = [{"step": step, "train/loss_c0": 1.0 if step % 2 else 3.0} for step in range(1, 4 * MOST_POINTS + 1)]
    (line,) = re.findall(r'points="([^"]*)"', loss_plot(records, [], []).svg)[:1]
    points = [point.split(",") for point in line.split()]
    assert len(points) == MOST_POINTS and len({y for _, y in points}) == 1  # each the mean of four


def test_what_is_no_run_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text("[1]\n")
    for name, reason in [
        ("none", "give the run_dir of a training"),
        ("empty", "it has no line yet"),
        ("other", "holds no metrics of a training"),
    ]:
        monkeypatch.setattr(sys, "argv", ["csm", "curves", str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
        assert f"{name}/metrics.jsonl" in printed and reason in printed


@pytest.mark.slow
def test_a_training_is_drawn_as_it_was_logged(tiny_overrides, tmp_path, monkeypatch, capsys):
    words = ["trainer.max_steps=6", "trainer.val_every_steps=2", "trainer.sample_every_steps=2"]
    judge = ["trainer.sample_prompts=1", "trainer.sample_similarity=resemblyzer"]
    train(compose_train([*tiny_overrides, *words, *judge]))
    monkeypatch.setattr(sys, "argv", ["csm", "curves", str(tmp_path / "run")])
    capsys.readouterr()
    main()
    assert capsys.readouterr().out.startswith(f"{tmp_path}/run/curves.html: 6 steps, ")
    html = (tmp_path / "run" / "curves.html").read_text()
    assert not re.search(r"(src|href)=", html)
    drawn = figures(html)
    loss, norms = drawn["Loss, nats per frame; validation dashed"], drawn["Gradient norm before clipping"]
    curves = dict(re.findall(r'<polyline class="([^"]*)" points="([^"]*)"', loss))
    assert {name: len(points.split()) for name, points in curves.items()} == {
        **{"c0": 6, "c1": 6},
        **{"c0 validation": 3, "c1 validation": 3},
    }
    assert norms.count("<polyline") == 4 and "embeddings</span>" in norms
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for step, ended in [(line["step"], line["samples/ended"]) for line in records if "samples/ended" in line]:
        assert f"step {step}: ended {ended:.3f}" in drawn["Ends, share of the samples"]
