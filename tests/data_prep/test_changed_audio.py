"""Audio that changes between plan and run is never used with the texts and times of the audio that was planned."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from made_recordings import calls_manifest, noise

from data_prep.audio.recording import RecordingAudio
from data_prep.config import DataPrepConfig, TranscribeBackend
from data_prep.execution.run import retry, run
from data_prep.inputs.plan import load_plan, make_plan
from data_prep.packing.pack import pack
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Locator
from tests.data_prep.heard import recording


def other_audio(file: Path) -> None:
    """Replaces the samples; size and time of modification stay."""
    before = file.stat()
    soundfile.write(file, noise(5.0, 16000, 99), 16000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40_000])


@pytest.fixture
def planned(config, tmp_path) -> DataPrepConfig:
    cfg = config(calls_manifest(tmp_path))
    cfg.transcribe.backend = TranscribeBackend.none
    make_plan(cfg)
    return cfg


@pytest.mark.parametrize("change", [other_audio, cut_off])
def test_a_changed_file_is_rejected_by_name_and_the_others_are_prepared(planned, tmp_path, change):
    change(tmp_path / "call1.wav")
    summary = run(planned)
    assert summary.failures == [] and summary.rejected == {Reason.audio_changed: 1}
    info = pack(planned)
    rejected = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(row["recording"], row["reason"]) for row in rejected] == [("local/Call 1", "audio_changed")]
    assert "call1.wav: its file has changed" in rejected[0]["message"]
    assert sum(split["samples"] for split in info.totals.values()) == 4


def test_a_restored_file_is_prepared_by_retry_and_a_new_one_by_an_update_of_the_plan(planned, tmp_path):
    file = tmp_path / "call1.wav"
    kept = file.read_bytes()
    other_audio(file)
    run(planned)
    file.write_bytes(kept)
    assert retry(planned) == ["local/Call 1"]
    assert run(planned).rejected == {}
    other_audio(file)
    with pytest.raises(ValueError, match=r"1 changed, such as local/Call 1.*plan.update=true"):
        make_plan(planned)
    planned.plan.update = True
    before = load_plan(tmp_path / "out.work").recording("local/Call 1")
    make_plan(planned)
    assert load_plan(tmp_path / "out.work").recording("local/Call 1").sha256 != before.sha256
    assert run(planned).rejected == {}


def test_remote_audio_is_compared_too(tmp_path):
    import fsspec

    soundfile.write(tmp_path / "a.wav", noise(1.0, 16000, 1), 16000)
    with fsspec.open("memory://changed/a.wav", "wb") as file:
        file.write((tmp_path / "a.wav").read_bytes())
    remote = recording(1.0, locator=Locator("memory://changed/a.wav"), sha256="0" * 64)
    with pytest.raises(RejectedRecording, match=r"audio_changed: a\.wav: its file has changed"):
        RecordingAudio(remote).track(None, 16000)
    remote.sha256 = hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()
    assert len(RecordingAudio(remote).track(None, 16000)) == 16000
