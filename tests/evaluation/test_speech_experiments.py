"""An experiment on speech from the command to the page: what it says of every arm is what the arm's report holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csm.evaluation.compare import read_run
from csm.evaluation.statistics import Difference, compare_ratios
from csm.formats.load import load_model
from csm.quantization.tensors import is_quantized
from experiments.arms.experiment import EXPERIMENTS
from experiments.speech.command import main
from experiments.speech.comparison import needed_items
from experiments.speech.description import DESCRIPTION, read_description

ARMS = {
    "greedy": [],
    "hot": ["eval.temperature=1.0", "eval.seeds=[0,1,2]"],
    "3 books": ["eval.num_codebooks=3"],
    "int8": [],
}
BASE = ["eval=quickstart", "eval.temperature=0", "eval.max_audio_seconds=0.8", "eval.context_turns=0"]
BASE += ["eval.max_prompts=4", "eval.seeds=[0]", "eval.intrinsic_split=null", "eval.codec_levels=[]"]


def describe(folder: Path, dataset: Path, **changes: object) -> Path:
    content = {
        "title": "Decoding",
        "question": "How?",
        "base": [*BASE, f"eval.dataset={dataset}"],
        "arms": ARMS,
        "quantized": {"int8": "int8"},
        "reference": "greedy",
    }
    folder.mkdir()
    (folder / DESCRIPTION).write_text(json.dumps(content | changes), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_arms_are_spoken_compared_and_written_up(checkpoint, dataset_path, tmp_path):
    folder, runs = describe(tmp_path / "decoding", dataset_path), tmp_path / "runs"
    words = [str(folder), str(checkpoint), "--runs", str(runs), "--docs", str(tmp_path / "docs")]
    main(words)
    text = (folder / "results.json").read_text(encoding="utf-8")
    found = json.loads(text)
    reports = {arm: read_run(runs / "decoding" / f"{arm.replace(' ', '-')}-model0") for arm in ARMS}

    wer = found["metrics"]["wer_corpus"]
    for arm, report in reports.items():
        terms = report.terms["wer_corpus"]
        assert {seed for _, seed in terms} == ({0, 1, 2} if arm == "hot" else {0})
        rate = sum(errors for errors, _ in terms.values()) / sum(number for _, number in terms.values())
        assert wer["arms"][arm]["value"] == pytest.approx(rate)
        if arm != "greedy":
            difference = rate - wer["arms"]["greedy"]["value"]
            assert wer["differences"][arm]["value"] == pytest.approx(difference, abs=1e-9)
    assert wer["recorded"]["recordings"] < 0.1 < wer["arms"]["greedy"]["value"]
    assert reports["3 books"].results["protocol"]["sampling"]["num_codebooks"] == 3
    assert "num_codebooks" not in reports["greedy"].results["protocol"]["sampling"]
    smaller = load_model(runs / "decoding" / "int8-model0-int8")
    assert any(is_quantized(weight) for weight in smaller.state_dict().values())

    page = tmp_path / "docs/experiments/decoding.md"
    lines = page.read_text(encoding="utf-8")
    plot = tmp_path / "docs/images/experiment_decoding.svg"
    assert plot.read_text(encoding="utf-8").count("<circle") == 2 * len(ARMS)
    for part in (
        "# Decoding",
        "**Question.** How?",
        "**Answer.** Against greedy",
        "`eval.num_codebooks=3`",
        "3 books |",
    ):
        assert part in lines

    spoken = {path: path.stat().st_mtime_ns for path in (runs / "decoding").glob("*/audio/*.wav")}
    main(words)  # nothing is spoken again, and the same is found
    assert (folder / "results.json").read_text(encoding="utf-8") == text
    assert {path: path.stat().st_mtime_ns for path in spoken} == spoken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "cold"}, "reference=cold must be one of them"),
        ({"quantized": {"int8": "int7"}}, "int7"),
        ({"quantized": {"int4": "int8"}}, "must name an arm"),
        ({"arms": {"greedy": [], "greedy!": []}}, "names of arms"),
    ],
)
def test_descriptions_that_cannot_be_run_are_rejected(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_description(describe(tmp_path / "bad", tmp_path, **changes))


def test_experiments_of_the_project_can_be_read():
    folders = [path.parent for path in EXPERIMENTS.glob(f"*/{DESCRIPTION}")]
    assert {folder.name for folder in folders} >= {"guidance", "sampling", "truncation"}
    for folder in folders:
        read_description(folder)


def test_without_a_model_it_says_what_is_missing(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["guidance", "device=cpu"])
    assert stopped.value.code == 2
    assert "name the model directory" in capsys.readouterr().err


def test_sentences_that_would_show_a_difference_are_those_that_do():
    """Of errors drawn with a difference, so many sentences find it in about 80 % of repetitions."""
    rng = np.random.default_rng(3)

    def compare(count: int) -> Difference:
        a, b = rng.poisson(0.9, count), rng.poisson(0.6, count)
        words = np.full(count, 8.0)
        return compare_ratios(
            (a.tolist(), words.tolist()), (b.tolist(), words.tolist()), [str(i) for i in range(count)]
        )

    wanted = [needed_items(replace(compare(400), value=0.3 / 8)) for _ in range(5)]
    assert max(wanted) < 1.3 * min(wanted)
    count = int(np.median(wanted))
    found = [one.low > 0 or one.high < 0 for one in (compare(count) for _ in range(200))]
    assert 0.7 < np.mean(found) < 0.9
