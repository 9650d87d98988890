"""Every form of input lists the same recordings, and names what is wrong with others."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from bad_files import DEMO, speech, write_latin1_name
from made_recordings import noise, write_manifest

from data_prep.audio.recording import RecordingAudio
from data_prep.config import SourceConfig
from data_prep.inputs.notes import Notes
from data_prep.inputs.sources import read_source
from data_prep.records import GivenTurn, Recording, Rejection

RATE = 16000
GOOD = {"audio": "a.wav", "turns": [{"speaker": "x", "text": "hi", "start": 0, "end": 1}]}


def listed(source: Path | str, **options) -> dict[str, Recording | Rejection]:
    entries = list(read_source("s", SourceConfig(input=str(source), **options)))
    by_id = {entry.recording if isinstance(entry, Rejection) else entry.id: entry for entry in entries}
    assert len(by_id) == len(entries)
    return {name.removeprefix("s/"): by_id[name] for name in sorted(by_id)}


def sound(entry: Recording) -> np.ndarray:
    return RecordingAudio(entry).track(None, 24000)


# ------------------------------------------------------------------------------------- one set, every form


@pytest.fixture(scope="module")
def calls() -> dict[str, tuple[bytes, dict]]:
    """Name of an audio file -> its bytes, its entry of a manifest."""
    rows = [json.loads(line) for line in (DEMO / "manifest.jsonl").read_text().splitlines()[:4]]
    calls = {}
    for number, row in enumerate(rows):
        turns = [turn | {"speaker": f"speaker {turn['speaker']}"} for turn in row["turns"]]
        turns[0]["text"] = None  # to be transcribed
        name = f"week {number % 2} 🎙/{row['audio']}"
        entry = {"audio": name, "group": f"show{number % 2}", "split": "val" if number % 2 else None, "turns": turns}
        calls[name] = ((DEMO / row["audio"]).read_bytes(), entry)
    return calls


def write_folder(folder: Path, calls) -> Path:
    for name, (content, entry) in calls.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        side = {key: value for key, value in entry.items() if key != "audio"} | {"licence": "anything else is ignored"}
        (folder / name).with_suffix(".json").write_text(json.dumps(side))
    return folder


def write_tars(folder: Path, calls) -> Path:
    write_folder(folder / "unpacked", calls)
    for number, week in enumerate(sorted(os.listdir(folder / "unpacked"))):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            tar.add(folder / "unpacked" / week, week)
    shutil.rmtree(folder / "unpacked")
    return folder


def write_table(file: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)
    return file


def write_dataset(folder: Path, calls) -> Path:
    folder.mkdir()
    rows = [entry | {"audio": {"bytes": content, "path": name}} for name, (content, entry) in calls.items()]
    write_table(folder / "train-00000-of-00002.parquet", rows[:3])
    write_table(folder / "train-00001-of-00002.parquet", rows[3:])
    return folder


def test_all_forms_give_the_same_recordings(calls, tmp_path):
    folder = write_folder(tmp_path / "a folder", calls)
    entries = [entry for _, entry in calls.values()]
    memory = fsspec.filesystem("memory")
    for file in folder.rglob("*.*"):
        memory.pipe(f"/calls/{file.relative_to(folder)}", file.read_bytes())
    memory.pipe("/calls.tar", next(iter(sorted(write_tars(tmp_path / "tars", calls).iterdir()))).read_bytes())
    forms = {
        "folder": folder,
        "glob": f"{folder}/**/*.flac",
        "manifest": write_manifest(folder / "m.jsonl", entries),
        "manifest table": write_table(folder / "m.parquet", entries),
        "folder of tars": tmp_path / "tars",
        "tars": f"{tmp_path}/tars/*.tar",
        "dataset": write_dataset(tmp_path / "dataset", calls),
        "URL of folder": "memory://calls",
        "URL of manifest": "memory://calls/m.jsonl",
    }
    memory.pipe("/calls/m.jsonl", (folder / "m.jsonl").read_bytes())
    seen = {}
    for form, source in forms.items():
        # Names of files differ between forms; groups and turns tell which recording is which.
        entries = sorted(listed(source).values(), key=lambda entry: (entry.group, entry.turns[0].end))
        seen[form] = [(e.group, e.split, e.turns, sound(e).tobytes()) for e in entries]
        assert len(seen[form]) == 4, form
    for form in forms:
        assert seen[form] == seen["folder"], form
    first = seen["folder"][0]
    assert first[:2] == ("show0", None) and first[2][0].text is None and first[2][0].speaker == "speaker 1"
    names = {form: list(listed(source)) for form, source in forms.items()}
    assert names["folder"] == names["glob"] == names["manifest"] == names["URL of folder"] == sorted(calls)
    assert names["tars"] == [f"{n:03d}.tar/{name}" for n, name in zip((0, 0, 1, 1), sorted(calls), strict=True)]
    assert names["dataset"][3] == "train-00001-of-00002.parquet/00000000"
    (one, two) = listed("memory://calls.tar").values()
    assert sound(one).tobytes() in [entry[3] for entry in seen["folder"]] and two.locator.offset > 0


def test_recordings_of_one_speaker_can_be_divided(tmp_path):
    """As one group they would all be trained on, or all held out."""
    audio = {"bytes": (DEMO / "echo.flac").read_bytes(), "path": "echo.flac"}
    rows = [{"audio": audio, "sentence": "Hello.", "speaker_id": who} for who in ("ann", "ann", "bob")]
    source = write_table(tmp_path / "one.parquet", rows[:2])
    notes = Notes()
    recordings = list(read_source("s", SourceConfig(input=str(source)), notes))
    assert len({entry.group for entry in recordings}) == 2 == len(recordings)
    assert list(notes.remarks.values()) == [["ann"]]
    source = write_table(tmp_path / "two.parquet", rows)
    assert [entry.group for entry in listed(source).values()] == ["ann", "ann", "bob"]
    source = write_table(tmp_path / "split.parquet", [{**row, "split": "val"} for row in rows[:2]])
    assert {entry.group for entry in listed(source).values()} == {"ann"}


def test_dataset_columns_become_a_turn(tmp_path):
    audio = {"bytes": (DEMO / "echo.flac").read_bytes(), "path": "/of/another/machine/echo.flac"}
    rows = [{"audio": audio, "sentence": " Hello. ", "raw": "HELLO", "speaker_id": 77, "id": 5, "duration": 1.5}]
    source = write_table(tmp_path / "d.parquet", rows)
    (entry,) = listed(source).values()
    assert entry.turns == [GivenTurn(0, "77", 0.0, None, "Hello.")] and entry.group == "77"
    assert entry.audio == "d.parquet/00000000/echo.flac"
    (entry,) = listed(source, text_column="raw", group_pattern=r"(\w+)\.flac").values()
    assert entry.turns[0].text == "HELLO" and entry.group == "echo"
    with pytest.raises(ValueError, match=r"d\.parquet: has no column 'words' \(text_column\); it has audio, sentence"):
        listed(source, text_column="words")
    with pytest.raises(ValueError, match="has no column 'audio'"):
        listed(write_table(tmp_path / "e.parquet", [{"sound": 1}]))


# ------------------------------------------------------------------------------------------ side files


def test_side_files(tmp_path):
    for name in ("text", "nothing", "rttm", "stm", "stereo", "both"):
        soundfile.write(tmp_path / f"{name}.wav", noise(1.0, RATE, 1), RATE)
    (tmp_path / "text.txt").write_text("﻿Hello\nthere.\n")
    (tmp_path / "rttm.rttm").write_text(
        ";; comment\nSPKR-INFO rttm 1 <NA> <NA> <NA> unknown b <NA>\n"
        "SPEAKER rttm 1 0.5 0.25 <NA> <NA> b <NA> <NA>\nSPEAKER rttm 1 0.1 0.3 <NA> <NA> a <NA> <NA>\n"
    )
    (tmp_path / "stm.stm").write_text(
        "other 1 z 0 1 not here\nstm 1 Ann 0.1 0.4 <o,f0,female> Hi, <b> there.\nstm 1 Bob 0.5 0.9\n"
        "stm 1 Ann 0.9 1.0 ignore_time_segment_in_scoring\n"
    )
    (tmp_path / "stereo.stm").write_text("x A Ann 0.1 0.4 Hi.\nx B Bob 0.5 0.9 Hello.\n")
    (tmp_path / "both.rttm").write_text("SPEAKER x 1 0 1 <NA> <NA> a <NA> <NA>\n")
    (tmp_path / "both.txt").write_text("Whole.")
    turns = {name.removesuffix(".wav"): entry.turns for name, entry in listed(tmp_path).items()}
    assert turns == {
        "text": [GivenTurn(0, "0", 0.0, None, "Hello there.", None, 0)],
        "nothing": None,
        "rttm": [GivenTurn(1, "a", 0.1, 0.4), GivenTurn(0, "b", 0.5, 0.75)],
        "stm": [GivenTurn(0, "Ann", 0.1, 0.4, "Hi, <b> there."), GivenTurn(1, "Bob", 0.5, 0.9, "")],
        "stereo": [GivenTurn(0, "Ann", 0.1, 0.4, "Hi.", 0), GivenTurn(1, "Bob", 0.5, 0.9, "Hello.", 1)],
        "both": [GivenTurn(0, "a", 0.0, 1.0)],
    }


def test_broken_side_files_reject_their_recording_alone(tmp_path):
    broken = {
        "latin.txt": (b"\xe9t\xe9", "not UTF-8"),
        "json.json": (b'{"turns": [', "not valid JSON"),
        "list.json": (b"[1]", "expected a JSON object, got list"),
        "key.json": (b'{"turns": [{"speaker": 1, "txt": "x"}]}', "turn 0: unknown key 'txt'"),
        "times.rttm": (b"SPEAKER x 1 one 2 <NA> <NA> a <NA> <NA>", "line 1: expected a number of seconds, got 'one'"),
        "short.stm": (b"x 1 a 0.1", "line 1: expected file, channel, speaker"),
        "files.stm": (b"x 1 a 0 1 x\ny 1 a 0 1 y", "describes 2 files, none of them 'files'"),
        "surrogate.json": (b'{"text": "\\udce9"}', "invalid Unicode"),
    }
    for name, (content, _) in broken.items():
        soundfile.write((tmp_path / name).with_suffix(".wav"), noise(0.2, RATE, 1), RATE)
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "good.wav", noise(0.2, RATE, 2), RATE)
    (tmp_path / "lone.txt").write_text("No audio.")
    (tmp_path / "dataset_info.json").write_text("{}")
    write_latin1_name(tmp_path)
    found = listed(tmp_path)
    assert isinstance(found.pop("good.wav"), Recording)
    lone = found.pop("lone")
    assert (lone.reason, lone.message) == (
        "audio_missing",
        "lone.txt describes it, but there is no audio file of that name",
    )
    assert found.pop("ol\\udce9.wav").reason == "bad_name"
    assert found.keys() == {Path(name).with_suffix(".wav").name for name in broken}
    for name, (_, message) in broken.items():
        reject = found[Path(name).with_suffix(".wav").name]
        assert reject.reason == "bad_annotation" and message in reject.message, reject
        assert name in reject.message or name == "surrogate.json"


def test_damaged_tar_is_named_and_the_rest_of_it_used(calls, tmp_path):
    folder = write_tars(tmp_path / "tars", calls)
    whole = (folder / "000.tar").read_bytes()
    with tarfile.open(folder / "000.tar") as tar:
        second = tar.getmembers()[-1].offset
    (folder / "000.tar").write_bytes(whole[:second] + b"not a header" * 100)
    (folder / "002.tar").write_bytes(b"this was never a tar file" * 100)
    found = listed(folder)
    assert {name: entry.reason for name, entry in found.items() if isinstance(entry, Rejection)} == {
        "000.tar": "audio_corrupt",
        "002.tar": "audio_corrupt",
    }
    assert len(found) == 2 + 4


# ------------------------------------------------------------------------- mistakes that end the listing


def first_turn(**change):
    return {**GOOD, "turns": [{**GOOD["turns"][0], **change}]}


MISTAKES = [
    ({**GOOD, "lenght": 3}, "unknown key 'lenght'; known are audio, id, group, split, turns"),
    ({"turns": GOOD["turns"]}, "'audio' "),
    ({**GOOD, "turns": []}, "'turns' must be a non-empty list"),
    ({**GOOD, "split": "holdout"}, "'split' must be one of train, validation, test, got 'holdout'"),
    ({**GOOD, "id": 7}, "'id' must be a non-empty string, got 7"),
    ([GOOD], "expected a JSON object, got list"),
    (first_turn(txt="x"), "turn 0: unknown key 'txt'"),
    (first_turn(start="0:01"), "turn 0: 'start' must be a number of seconds, got \"0:01\""),
    (first_turn(speaker=None), "turn 0: 'speaker' "),
    (first_turn(speaker=True), "turn 0: 'speaker' must be"),
    (first_turn(speaker=-1), "turn 0: 'speaker' must be a name or a whole number >= 0, got -1"),
    (first_turn(channel=0.5), "turn 0: 'channel' must be a whole number >= 0, got 0.5"),
    (first_turn(text=7), "turn 0: 'text' must be a string, got 7"),
    ({**GOOD, "audio": "b.wav", "id": "a.wav"}, "two recordings have the id 'a.wav'"),
]


@pytest.mark.parametrize(("record", "message"), MISTAKES)
def test_each_mistake_in_a_manifest_names_file_line_and_field(tmp_path, record, message):
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError) as error:
        listed(file)
    where = f"{file}, line 2" if "two recordings" not in message else f"{file}: "
    assert str(error.value).startswith(where) and message in str(error.value)
    assert "\n" not in str(error.value)
    if isinstance(record, dict):  # the same in a table, where each column has one type
        table = tmp_path / "m.parquet"
        pq.write_table(pa.Table.from_pylist([record]), table)
        if "two recordings" not in message and record.get("audio"):
            with pytest.raises(ValueError, match=r"m\.parquet, row 0") as error:
                listed(table)
            assert message.split(" must")[0] in str(error.value)


def test_a_manifest_may_begin_with_a_byte_order_mark(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", [{"audio": "a.wav"}, {"audio": "b.wav"}])
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert list(listed(manifest)) == ["a.wav", "b.wav"]


def test_manifest_defaults_and_order(tmp_path):
    turns = [{"speaker": 3, "text": " late ", "start": 2.5, "end": 3, "channel": 1}, {"speaker": "x"}]
    rows = [{"audio": "sub/a.wav", "turns": turns}, {"audio": "memory://b.wav", "id": "b"}, {"audio": "/c.wav"}]
    found = listed(write_manifest(tmp_path / "m.jsonl", rows), lang=None, licence="CC0", two_channel="no")
    assert list(found) == ["/c.wav", "b", "sub/a.wav"]
    entry = found["sub/a.wav"]
    assert (entry.group, entry.split, entry.lang, entry.licence, entry.two_channel) == (
        "s/sub/a.wav",
        None,
        None,
        "CC0",
        "no",
    )
    assert entry.turns == [GivenTurn(1, "x", 0.0, None), GivenTurn(0, "3", 2.5, 3.0, "late", 1, 3)]
    assert entry.locator.path == str(tmp_path / "sub" / "a.wav")
    assert found["b"].locator.path == "memory://b.wav" and found["b"].turns is None
    assert found["/c.wav"].locator.path == "/c.wav"


def test_wrong_requests_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.jsonl").touch()
    (tmp_path / "latin.jsonl").write_bytes(b'{"audio": "\xe9.wav"}\n')
    (tmp_path / "half.jsonl").write_text('{"audio": ')
    (tmp_path / "x.parquet").write_bytes(b"PAR0" * 9)
    (tmp_path / "x.tar.gz").touch()
    with_manifest = tmp_path / "with"
    with_manifest.mkdir()
    (with_manifest / "all.jsonl").touch()
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "a.wav").touch()
    for source, options, message in [
        (tmp_path / "nowhere", {}, "nowhere: no such input; give a folder"),
        ("memory://nowhere", {}, "nowhere: no such input; give a folder"),
        ("nosuch://bucket/x", {}, "nosuch"),
        (tmp_path / "empty", {}, "holds no audio files"),
        (with_manifest, {}, f"give input={with_manifest}/all.jsonl"),
        (tmp_path / "m.jsonl", {}, "holds no recordings"),
        (tmp_path / "latin.jsonl", {}, "line 1: not UTF-8 text"),
        (tmp_path / "half.jsonl", {}, "line 1: not valid JSON"),
        (tmp_path / "x.parquet", {}, "not a parquet file"),
        (tmp_path / "x.tar.gz", {}, "x.tar.gz: unpack it first: tar -xf"),
        (audio, {"group_pattern": "("}, "group_pattern='(' is not a regular expression"),
        (audio, {"group_pattern": "a"}, "must contain one group in parentheses"),
        (audio, {"two_channel": "maybe"}, "two_channel=maybe must be one of auto, yes, no"),
        (audio, {"format": "kaldy"}, "format=kaldy must be one of files, tar, parquet, manifest, kaldi, shar"),
        (audio, {"format": "kaldi"}, "audio: holds nothing in the layout format=kaldi"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            listed(source, **options)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_links_and_foreign_files_in_a_folder(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "disk" / "deep" / "a.wav", speech("help")[0], RATE)
    (tmp_path / "disk" / "deep" / "up").symlink_to(tmp_path / "disk")  # a cycle
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "notes.pdf").touch()
    notes = Notes()
    (only,) = read_source("s", SourceConfig(str(tmp_path / "in")), notes)
    assert only.id == "s/link/deep/a.wav" and notes.set_aside == {".pdf (document)": ["notes.pdf"]}
    (entry,) = listed(tmp_path / "in", group_pattern=r"link/(\w+)/").values()
    assert entry.group == "deep"
