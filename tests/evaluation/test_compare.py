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
        "teacher_forced": None,
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
    found = compare_runs([read_run(whole), read_run(part)])
    assert found.rows[0].items == 60
    assert found.notes[0] == "WER, corpus (all errors): 60 of 72 items are in all runs"


def add_forced(folder: Path, nats: np.ndarray, fingerprint: str = "f", frames: int = 10) -> None:
    """Teacher-forced sums of conversations of three codebooks, two of each voice; nats [24, 3] a frame."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["teacher_forced"] = {"fingerprint": fingerprint, "split": "val"}
    path.write_text(json.dumps(results))
    lines = [
        {
            "key": f"call{number}",
            "cluster": f"voice{number // 2}",
            "frames": frames,
            "nats": (frames * row).tolist(),
            "ends": 2,
            "end_nats": 2 * float(row.sum()),
            "found": 1,
            "false_stops": 0,
        }
        for number, row in enumerate(nats)
    ]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_teacher_forced_losses_are_paired_by_conversation(tmp_path, errors):
    nats = np.random.default_rng(1).uniform(3, 5, (24, 3))
    better = nats - np.array([0.5, 0.1, 0.3])
    runs = [write_run(tmp_path / "a", "base", errors), write_run(tmp_path / "b", "<i>tuned</i>", errors)]
    add_forced(runs[0], nats)
    add_forced(runs[1], better[:22])  # two conversations less
    main([*map(str, runs), "--output", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/compare.json").read_text())
    rows = {row["metric"]: row for row in result["rows"]}
    loss = rows["forced_loss"]
    assert loss["items"] == 22 and loss["estimates"][0]["clusters"] == 11
    assert loss["estimates"][0]["value"] == pytest.approx((nats[:22, 0] + nats[:22, 1:].mean(axis=1)).mean())
    # Every conversation gains as much, which unpaired intervals, as wide as the losses differ, could not show.
    for name, gain in {"forced_loss": 0.7, "forced_c0": 0.5, "forced_c1-2": 0.2, "forced_ends": 0.9}.items():
        [difference] = rows[name]["differences"]
        assert [difference[side] for side in ("value", "low", "high")] == pytest.approx([-gain] * 3)
        assert rows[name]["p_holm"][0] < 0.05
    assert rows["forced_found"]["differences"][0]["value"] == 0 and rows["forced_found"]["estimates"][0]["value"] == 0.5
    assert [row["differences"][0]["value"] for row in result["codebooks"]] == pytest.approx([-0.5, -0.1, -0.3])
    assert "Teacher-forced: 22 of 24 conversations are in all runs" in result["notes"]
    html = (tmp_path / "out/compare.html").read_text()
    assert html.count("<polyline") == 2 and "<i>" not in html and "-0.700" in html
    assert "c1-2" in (tmp_path / "out/compare.md").read_text()


def test_teacher_forced_scores_of_other_data_are_not_compared(tmp_path, errors):
    runs = [write_run(tmp_path / name, name, errors) for name in ("a", "b", "c")]
    for run, fingerprint in zip(runs[:2], ("f", "g"), strict=True):
        add_forced(run, np.ones((24, 3)), fingerprint)
    a, b, c = map(read_run, runs)
    found = compare_runs([a, b])
    assert found.codebooks == [] and found.notes == ["Teacher-forced: the runs were scored on different data"]
    assert compare_runs([a, c]).notes == ["Teacher-forced: not all runs have been scored"]
    add_forced(runs[1], np.ones((24, 3)), frames=9)  # cut, by a model of fewer positions
    assert compare_runs([a, read_run(runs[1])]).notes == ["Teacher-forced: no conversation in common"]


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
