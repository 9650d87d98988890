"""Exports of recordings that are no file of their own: members of a tar file, stretches, many channels."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from layouts import Source
from made_recordings import noise, turn, write_manifest

from csm.data.dataset import ShardedDataset
from data_prep.audio.recording import RecordingAudio
from data_prep.audio.storage import open_bytes
from data_prep.config import ExportConfig, ExportFormat
from data_prep.export.command import export
from data_prep.prepare import prepare

RATE = 16_000
NAMES = ("a/b", "a_b", "a b")  # of which file names made of letters and digits alone would be the same


@pytest.fixture(scope="module")
def of_tar(tmp_path_factory, make_config):
    """A tar file of three recordings of two conversations each, prepared."""
    folder = tmp_path_factory.mktemp("tar")
    with tarfile.open(folder / "calls.tar", "w") as tar:
        for number, name in enumerate(NAMES):
            soundfile.write(folder / "x.wav", noise(5.0, RATE, number), RATE)
            turns = [turn("ab"[n % 2], 0.1 + n * 1.2, 1.1 + n * 1.2) for n in range(4)]
            (folder / "x.json").write_text(json.dumps({"turns": turns, "group": f"show {number}"}))
            for suffix in ("wav", "json"):
                tar.add(folder / f"x.{suffix}", f"{name}.{suffix}")
    cfg = make_config(folder / "calls.tar", folder / "out", **{"conversation.max_turns": 2})
    prepare(cfg)
    return cfg


def test_each_recording_is_written_to_a_file_of_its_own(of_tar, tmp_path):
    of_tar.export = ExportConfig(ExportFormat.lhotse, str(tmp_path / "cuts"))
    done = export(of_tar)
    assert done.conversations == 6 and not done.without_audio
    assert len(list((tmp_path / "cuts" / "audio").iterdir())) == 3
    source = Source(tmp_path / "cuts")
    whole = {f"show {number}": noise(5.0, RATE, number) for number in range(len(NAMES))}
    assert {entry.group for entry in source.recordings.values()} == whole.keys()
    for entry in source.recordings.values():
        assert len(entry.turns) == 4
        np.testing.assert_allclose(RecordingAudio(entry).track(None, RATE), whole[entry.group], atol=2e-4)


@pytest.mark.parametrize("form", ExportFormat)
def test_each_recording_is_decoded_once(of_tar, tmp_path, form, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "data_prep.audio.recording.open_bytes", lambda locator: opened.append(locator.offset) or open_bytes(locator)
    )
    of_tar.export = ExportConfig(form, str(tmp_path / "exported"))
    export(of_tar)
    assert len(opened) == len(set(opened)) == len(NAMES)


def test_what_flac_cannot_hold_is_named(tmp_path, make_config):
    tracks = [noise(3.0, RATE, channel) for channel in range(9)]
    soundfile.write(tmp_path / "nine.wav", np.stack(tracks, axis=1), RATE)
    soundfile.write(tmp_path / "one.wav", noise(3.0, RATE, 20), RATE)
    rows = [{"audio": "nine.wav", "turns": [turn("a", 0.5, 2.5, channel=8)]}]
    rows += [{"audio": "one.wav", "turns": [turn("b", 0.5, 2.5)]}]
    cfg = make_config(write_manifest(tmp_path / "m.jsonl", rows), tmp_path / "out")
    prepare(cfg)
    cfg.export = ExportConfig(ExportFormat.huggingface, str(tmp_path / "hf"))
    done = export(cfg)
    assert done.conversations == len(ShardedDataset(cfg.output)) - 1
    assert "nine.wav: 9 channels of 16000 Hz cannot be written as FLAC" in done.without_audio[0]
    assert Path(tmp_path / "hf" / "data" / "train-00000.parquet").is_file()
