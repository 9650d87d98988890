"""`evaluate.py compare`, on reports written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from csm.evaluation.compare import compare_runs, main, read_run
from csm.evaluation.report import SCHEMA_VERSION

METRICS = {
    "wer_corpus": {"title": "WER, corpus", "detail": "all errors", "percent": True, "pool": "items"},
    "cosine_earlier": {"title": "Speaker cosine", "detail": "earlier turns", "percent": False, "pool": "items"},
}


def write_run(folder: Path, name: str, errors: np.ndarray, temperature: float = 0.9, hash: str = "a") -> Path:
    """A report of 12 voices with 3 prompts each and 2 seeds; errors [12, 3, 2] of 10 words each."""
    folder.mkdir()
    rows = []
    for voice, prompt, seed in np.ndindex(errors.shape):
        rows.append(
            {
                "prompt": f"{voice}/{prompt}",
                "system": "model",
                "seed": seed,
                "cluster": f"voice{voice}",
                "terms": {"wer_corpus": [int(errors[voice, prompt, seed]), 10], "cosine_earlier": [0.5, 1]},
            }
        )
    rows.append(rows[0] | {"system": "ground_truth", "terms": {"wer_corpus": [0, 10]}})
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {
        "schema": SCHEMA_VERSION,
        "suite": "turns",
        "metrics": METRICS,
        "protocol_hash": hash,
        "protocol": {"sampling": {"temperature": temperature, "topk": 50}},
        "provenance": {"checkpoint": {"path": f"runs/{name}/export", "training": {"name": name}}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def errors() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4, size=(12, 3, 2))


def test_comparison_says_which_run_is_better_and_how_surely(tmp_path, errors, capsys):
    runs = [
        write_run(tmp_path / "a", "base", errors),
        write_run(tmp_path / "b", "<b>tuned</b>", errors - 1),
        write_run(tmp_path / "c", "same", errors),
    ]
    main([*map(str, runs), "--output", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/compare.json").read_text())
    wer, cosine = result["rows"]
    assert wer["metric"] == "wer_corpus" and wer["items"] == 72
    assert wer["estimates"][0]["value"] == pytest.approx(errors.mean() / 10)
    assert wer["differences"][0]["value"] == pytest.approx(-0.1)
    assert wer["differences"][0]["p"] == pytest.approx(2 / 2**12)
    assert wer["p_holm"][0] == pytest.approx(4 * 2 / 2**12)  # of four tests
    assert wer["differences"][1]["p"] == cosine["differences"][0]["p"] == 1
    html, markdown = (tmp_path / "out/compare.html").read_text(), (tmp_path / "out/compare.md").read_text()
    assert "<b>" not in html and "-10.00" in html and "**-10.00**" in markdown
    assert "p 0.002" in capsys.readouterr().out


def test_different_protocols_are_refused_with_the_differences(tmp_path, errors):
    runs = [write_run(tmp_path / "a", "base", errors), write_run(tmp_path / "b", "hot", errors, 1.2, hash="b")]
    command = [*map(str, runs), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"sampling\.temperature: 0\.9 against 1\.2") as error:
        main(command)
    assert "topk" not in str(error.value) and not (tmp_path / "out").exists()
    main([*command, "--allow-different-protocols"])
    assert "The protocols differ: these numbers do not compare" in (tmp_path / "out/compare.md").read_text()


def test_items_that_a_run_lacks_are_left_out_and_counted(tmp_path, errors):
    whole, part = write_run(tmp_path / "a", "base", errors), write_run(tmp_path / "b", "part", errors)
    lines = (part / "utterances.jsonl").read_text().splitlines(keepends=True)
    (part / "utterances.jsonl").write_text("".join(lines[12:]))
    rows, notes = compare_runs([read_run(whole), read_run(part)])
    assert rows[0].items == 60
    assert notes[0] == "WER, corpus (all errors): 60 of 72 items are in all runs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "results.json").unlink(), "no evaluation report"),
        (lambda folder: (folder / "results.json").write_text('{"schema": 1}'), "a report of schema 1, expected"),
        (lambda folder: (folder / "utterances.jsonl").write_text(""), "no item of any metric in common"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, errors, change, message):
    runs = [write_run(tmp_path / "a", "base", errors), write_run(tmp_path / "b", "tuned", errors)]
    change(runs[1])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main([*map(str, runs), "--output", str(tmp_path / "out")])
