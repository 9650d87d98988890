"""A prepared dataset written back in the forms of others, read again by our own readers of these forms."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from layouts import Source
from made_recordings import calls_manifest

from csm.data.dataset import ShardedDataset
from data_prep.audio.recording import RecordingAudio
from data_prep.config import DataPrepConfig, ExportConfig, ExportFormat
from data_prep.export.command import export
from data_prep.prepare import prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_config) -> DataPrepConfig:
    folder = tmp_path_factory.mktemp("calls")
    cfg = make_config(calls_manifest(folder), folder / "out", **{"conversation.max_turns": 3})
    prepare(cfg)
    return cfg


def turns_of(dataset: ShardedDataset) -> dict[str, list[tuple[str, float, float]]]:
    """Recording -> text, start and end of its turns in the recording."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for sample in map(dataset.read, range(len(dataset))):
        found.setdefault(sample.recording, []).extend((turn.text, turn.start, turn.end) for turn in sample.turns)
    return {name: sorted(turns, key=lambda turn: turn[1]) for name, turns in found.items()}


def test_lhotse_cuts_are_read_back_as_the_same_turns(prepared, tmp_path):
    prepared.export = ExportConfig(ExportFormat.lhotse, str(tmp_path / "cuts"))
    done = export(prepared)
    dataset = ShardedDataset(prepared.output)
    assert done.conversations == len(dataset) == 10 and not done.without_audio
    source = Source(tmp_path / "cuts")
    by_file = {Path(entry.locator.path).stem: entry for entry in source.recordings.values()}
    assert {
        file: [
            (turn.text, pytest.approx(turn.start, abs=1e-5), pytest.approx(turn.end, abs=1e-5)) for turn in entry.turns
        ]
        for file, entry in by_file.items()
    } == {name.removeprefix("local/").replace("Call ", "call"): turns for name, turns in turns_of(dataset).items()}
    assert [entry.split for _, entry in sorted(by_file.items())] == ["train"] * 4 + ["val"]
    lines = gzip.decompress((tmp_path / "cuts" / "cuts.val.jsonl.gz").read_bytes()).decode().splitlines()
    cut = json.loads(lines[0])
    assert cut["type"] == "MonoCut" and len(lines) == 2 and cut["recording"]["num_samples"] == 5 * 16000
    with pytest.raises(ValueError, match=r"cuts: exists already; choose another export\.to"):
        export(prepared)


def test_hugging_face_dataset_holds_sound_turns_and_codes(prepared, tmp_path):
    prepared.export = ExportConfig(ExportFormat.huggingface, str(tmp_path / "hf"))
    export(prepared)
    dataset = ShardedDataset(prepared.output)
    rows = pq.read_table(tmp_path / "hf" / "data" / "train-00000.parquet").to_pylist()
    samples = {sample.key: sample for sample in map(dataset.read, range(len(dataset)))}
    assert {row["key"] for row in rows} == {key for key, sample in samples.items() if sample.split == "train"}
    for row in rows:
        np.testing.assert_array_equal(np.array(row["codes"]), samples[row["key"]].codes)
    source = Source(tmp_path / "hf" / "data")
    assert len(source.recordings) == len(dataset) and {entry.split for entry in source.recordings.values()} == {
        "train",
        "val",
    }
    for row, entry in zip(rows, [entry for entry in source.recordings.values() if entry.split == "train"], strict=True):
        sample = samples[row["key"]]
        number = sample.recording[-1]
        whole, _ = soundfile.read(Path(prepared.input).parent / f"call{number}.wav", dtype="float32")
        clip = whole[round(sample.start * 16000) : round(sample.end * 16000)]
        np.testing.assert_allclose(RecordingAudio(entry).track(None, 16000), clip, atol=2e-4)
        assert [(turn.text, turn.start) for turn in entry.turns] == [
            (turn.text, pytest.approx(turn.start - sample.start)) for turn in sample.turns
        ]
        assert entry.lang == "en" and entry.group == sample.group
    features = json.loads(pq.read_schema(tmp_path / "hf" / "data" / "train-00000.parquet").metadata[b"huggingface"])
    lists = features["info"][
        "features"
    ]  # as the package datasets has written them before version 4, and reads them since
    assert (
        lists["codes"] == [[{"dtype": "uint16", "_type": "Value"}]] and lists["turns"][0]["text"]["dtype"] == "string"
    )
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "- split: validation\n    path: data/val-*.parquet" in card


@pytest.mark.parametrize("form", ExportFormat)
def test_conversations_without_their_audio_are_named(prepared, tmp_path, form):
    gone = Path(prepared.input).parent / "call2.wav"
    content = gone.read_bytes()
    gone.unlink()
    try:
        prepared.export = ExportConfig(form, str(tmp_path / "exported"))
        done = export(prepared)
    finally:
        gone.write_bytes(content)
    assert done.conversations == 8 and len(done.without_audio) == 2 and "call2.wav" in done.without_audio[0]
