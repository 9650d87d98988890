"""Splits that the data give: one word for each in all forms, and none is dropped without a line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import Source, text, wav

from data_prep.config import DataPrepConfig, PlanConfig
from data_prep.inputs.plan import make_plan

FORMS = {
    "manifest": lambda folder, split: text(folder / "m.jsonl", [{"audio": "a.wav", "split": split}]),
    "parquet manifest": lambda folder, split: pq.write_table(
        pa.Table.from_pylist([{"audio": "a.wav", "split": split}]), folder / "m.parquet"
    ),
    "parquet": lambda folder, split: pq.write_table(
        pa.Table.from_pylist([{"audio": {"bytes": None, "path": "a.wav"}, "split": split}]), folder / "m.parquet"
    ),
    "JSON": lambda folder, split: text(folder / "a.json", json.dumps({"text": "Hi.", "split": split})),
    "rows": lambda folder, split: text(folder / "metadata.csv", f"file_name,text,split\na.wav,Hi.,{split}\n"),
    "lines": lambda folder, split: text(
        folder / "m.json", [{"audio_filepath": "a.wav", "text": "Hi.", "duration": 1, "split": split}]
    ),
}
WORDS = {
    "train": "train",
    "Train": "train",
    "validation": "val",
    "dev": "val",
    "val": "val",
    "test": None,
    "eval": None,
}


def given_in(folder: Path, form: str, split: object) -> Source:
    wav(folder / "a.wav")
    FORMS[form](folder, split)
    (file,) = (path for path in folder.iterdir() if path.suffix != ".wav")
    return Source(file if file.suffix in (".jsonl", ".parquet") else folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_split_means_the_same_in_every_form(tmp_path, form):
    for number, (word, split) in enumerate(WORDS.items()):
        source = given_in(tmp_path / str(number), form, word)
        assert [recording.split for recording in source.recordings.values()] == ([split] if split else []), word
        assert list(source.reasons.values()) == ([] if split else ["test_split"]), word


@pytest.mark.parametrize("form", FORMS)
def test_another_split_is_refused_and_not_trained_on(tmp_path, form):
    message = "'split' must be one of train, validation, test, got 'holdout'"
    if "manifest" in form:
        with pytest.raises(ValueError, match=message):
            given_in(tmp_path, form, "holdout")
    else:
        source = given_in(tmp_path, form, "holdout")
        assert list(source.reasons.values()) == ["bad_annotation"]
        assert message in next(iter(source.rejected.values())).message


@pytest.mark.parametrize(("form", "fold"), [("rows", "fold1"), ("rows", 3), ("lines", 3), ("lines", "fold1")])
def test_a_column_of_folds_is_refused_with_the_way_out(tmp_path, form, fold):
    (rejection,) = given_in(tmp_path, form, fold).rejected.values()
    assert rejection.message.endswith("; rename the column 'split' if it holds something else, such as folds")


def test_lists_of_moshi_finetune_give_the_split(tmp_path):
    for name, file in (("a", "train.jsonl"), ("b", "eval.jsonl"), ("c", "valid.jsonl")):
        wav(tmp_path / "stereo" / f"{name}.wav", channels=2)
        text(tmp_path / "stereo" / f"{name}.json", json.dumps({"alignments": [["Hi.", [0.1, 0.3], "SPEAKER_MAIN"]]}))
        text(tmp_path / file, [{"path": f"stereo/{name}.wav", "duration": 1.0}])
    source = Source(tmp_path)
    splits = {name: recording.split for name, recording in source.recordings.items()}
    assert splits == {"stereo/a.wav": "train", "stereo/c.wav": "val"}
    assert source.reasons == {"stereo/b.wav": "test_split"} and source.notes.layouts["moshi"] == 3


def planned(folder: Path, output: Path, strict: bool) -> list[str]:
    cfg = DataPrepConfig(input=str(folder), output=str(output), plan=PlanConfig(strict=strict))
    (source,) = make_plan(cfg).understood
    return source.lines()


LINE = "recordings with the split {!r} in their path, which is not used, as no path has another: {}"


def test_a_lone_test_folder_beside_others_has_a_line_and_is_an_error_when_strict(tmp_path):
    wav(tmp_path / "in" / "test-clean" / "a.wav"), wav(tmp_path / "in" / "more" / "b.wav")
    line = LINE.format("test", "1: test-clean/a.wav")
    assert f"  {line}" in planned(tmp_path / "in", tmp_path / "out", strict=False)
    with pytest.raises(ValueError, match="with the split 'test' in their path"):
        planned(tmp_path / "in", tmp_path / "out2", strict=True)
    wav(tmp_path / "in" / "train" / "c.wav")  # now the paths tell one from another
    source = Source(tmp_path / "in")
    assert source.reasons == {"test-clean/a.wav": "test_split"} and not source.notes.losses


@pytest.mark.parametrize(
    ("folders", "line"),
    [
        (["test"], LINE.format("test", "1: test/a.wav")),
        (["train", "more"], LINE.format("train", "1: train/a.wav")),
        (["train"], None),
        (["more"], None),
    ],
)
def test_one_split_that_holds_nothing_out_is_a_remark(tmp_path, folders, line):
    for folder in folders:
        wav(tmp_path / "in" / folder / "a.wav")
    lines = planned(tmp_path / "in", tmp_path / "out", strict=True)
    assert [found.strip() for found in lines if "in their path" in found] == ([line] if line else [])


def test_manifests_named_by_splits_are_not_mixed(tmp_path):
    for name in ("train", "test", "dev"):
        wav(tmp_path / f"of_{name}.wav")
        text(tmp_path / f"{name}.jsonl", [{"audio": f"of_{name}.wav"}])
    source = Source(f"{tmp_path}/*.jsonl")
    assert {name: entry.split for name, entry in source.recordings.items()} == {
        "of_train.wav": "train",
        "of_dev.wav": "val",
    }
    assert source.reasons == {"of_test.wav": "test_split"}
