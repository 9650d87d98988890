"""Twelve kinds of odd or broken files among good ones: each is named with its reason, nothing good is lost."""

from pathlib import Path

import pytest
from bad_files import GOOD, KINDS, speech, write_bad_files, write_good_files

from csm.data.dataset import ShardedDataset
from data_prep.dataset.verify import verify
from data_prep.prepare import prepare
from data_prep.records import LedgerRow, Rejection
from data_prep.tables import read_rows

LATER = {"music.wav": ("vad", "no_speech")}  # which neither the plan nor decoding detects
PASS = {"8bit.wav", "7channels.wav", "sub folder/café 🎙 call.wav", "zero-length-turn.wav"}


@pytest.fixture(scope="module")
def output(tmp_path_factory, make_config) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    write_good_files(folder)
    write_bad_files(folder)
    output = tmp_path_factory.mktemp("made") / "out"
    _, summary = prepare(make_config(folder, output, **{"transcribe.model": "bundled", "dedup.fingerprint": False}))
    assert not summary.failures
    return output


def test_each_bad_file_is_named_with_its_reason(output):
    whole = {row.audio: row.reason for row in read_rows(output / "rejects.parquet", Rejection) if row.turn is None}
    expected = {kind.name: kind.at_plan or kind.at_decode for kind in KINDS if kind.at_plan or kind.at_decode}
    expected |= {name: reason for name, (_, reason) in LATER.items()}
    assert whole == expected
    assert expected.keys() | PASS == {kind.name for kind in KINDS}


def test_no_good_file_is_lost(output):
    dataset = ShardedDataset(output)
    found: dict[str, list[str]] = {}
    for sample in sorted(map(dataset.read, range(len(dataset))), key=lambda sample: sample.start):
        found.setdefault(sample.audio, []).extend(turn.text for turn in sample.turns)
    sources = {name: Path(name).stem for name in GOOD}
    sources |= {"8bit.wav": "sorry", "7channels.wav": "help", "zero-length-turn.wav": "parking"}
    sources["sub folder/café 🎙 call.wav"] = "monkeys"
    assert found == {name: [turn["text"] for turn in speech(demo)[1]] for name, demo in sources.items()}
    (turn,) = [row for row in read_rows(output / "rejects.parquet", Rejection) if row.turn is not None]
    assert (turn.audio, turn.reason, turn.start) == ("zero-length-turn.wav", "bad_times", 1.5)
    assert verify(output) == []


def test_every_millisecond_is_accounted_for(output):
    """Hours in are hours kept and hours lost; of each file that could be opened, its length."""
    of_recording: dict[str, int] = {}
    for row in read_rows(output / "ledger.parquet", LedgerRow):
        of_recording[row.recording] = of_recording.get(row.recording, 0) + row.ms
    assert of_recording["local/12-hours-of-silence.flac"] == 12 * 3600 * 1000
    assert of_recording["local/music.wav"] == 6000
    for name in GOOD[:2]:  # an mp3 is a little longer than what went in
        assert of_recording[f"local/{name}"] == round(len(speech(Path(name).stem)[0]) / 16)
