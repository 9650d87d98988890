"""Plans: which recordings are planned and rejected, whatever the order of inputs and the interruptions."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from bad_files import GOOD, KINDS, write_bad_files, write_good_files
from made_recordings import files, noise, turn, write_manifest

from data_prep.audio.recording import RecordingAudio
from data_prep.config import DataPrepConfig, PlanConfig, SourceConfig
from data_prep.inputs import plan_files
from data_prep.inputs.plan import Plan, load_plan, make_plan
from data_prep.inputs.probe import Probe, probe
from data_prep.inputs.units import unit_seconds
from data_prep.reasons import RejectedRecording
from data_prep.records import Locator, Recording

RATE = 16000


@pytest.fixture
def plan_of(tmp_path):
    """`plan_of(input, work="work", **{"plan.option": value})`: makes the plan."""

    def make(source: Path | None, work: str = "work", limit: int | None = None, sources=None, **options) -> Plan:
        cfg = DataPrepConfig(output=str(tmp_path / "out"), work=str(tmp_path / work), limit=limit)
        cfg.input, cfg.sources = None if source is None else str(source), sources or {}
        cfg.plan = PlanConfig(**options)
        return make_plan(cfg)

    return make


def recordings_of(plan: Plan) -> dict[str, Recording]:
    return {recording.id: recording for unit in plan.units for recording in plan.recordings(unit.id)}


def content(work: Path) -> dict[str, bytes]:
    """The plan's files, without the cache of probes."""
    shutil.rmtree(work / "probed", ignore_errors=True)
    return files(work)


# ------------------------------------------------------------------------------------------- kinds of file


def test_twelve_kinds_of_odd_file_among_good_ones(tmp_path, plan_of):
    """Each is either rejected by name and reason where it should be, or read; no good file is lost."""
    folder = tmp_path / "disk"
    write_good_files(folder)
    write_bad_files(folder)
    plan = plan_of(folder)
    assert len(KINDS) == 12
    rejected = {rejection.recording: rejection.reason for rejection in plan.rejections}
    assert rejected == {f"local/{kind.name}": kind.at_plan for kind in KINDS if kind.at_plan}
    recordings = recordings_of(plan)
    assert recordings.keys() == {f"local/{name}" for name in (*GOOD, *(k.name for k in KINDS if not k.at_plan))}
    for kind in KINDS:
        if kind.at_plan:
            continue
        recording = recordings[f"local/{kind.name}"]
        assert (recording.sample_rate, recording.channels) == (kind.rate, kind.channels)
        audio = RecordingAudio(recording)
        if kind.at_decode:
            with pytest.raises(RejectedRecording) as error:
                audio.track(None, RATE)
            assert error.value.reason == kind.at_decode and kind.name in error.value.message
        else:
            assert len(audio.track(None, RATE)) == pytest.approx(recording.seconds * RATE, abs=1)
    for name in GOOD:
        recording = recordings[f"local/{name}"]
        assert len(recording.turns) >= 3 and RecordingAudio(recording).track(None, 24000).any()
    silence, _ = (rejection for rejection in plan.rejections if rejection.end)
    assert silence.reason == "recording_too_long" and silence.end == 12 * 3600
    duplicate = next(rejection for rejection in plan.rejections if rejection.reason == "duplicate_file")
    assert duplicate.message == "the same file as local/echo.wav"
    assert duplicate.end == recordings["local/echo.wav"].seconds


def test_rows_say_what_files_are(tmp_path, plan_of):
    stereo = np.stack([noise(1.5, 44100, 1), noise(1.5, 44100, 2)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44100, subtype="PCM_24")
    soundfile.write(tmp_path / "short.wav", noise(0.05, RATE, 1), RATE)
    rows = [{"audio": "a.wav", "id": "A", "group": "show", "split": "val", "turns": [turn("x", 0.5, 1.0)]}]
    manifest = write_manifest(tmp_path / "m.jsonl", [*rows, {"audio": "short.wav"}, {"audio": "gone.wav"}])
    plan = plan_of(None, sources={"calls": SourceConfig(str(manifest), lang=None, licence="CC0", two_channel="yes")})
    (found,) = recordings_of(plan).values()
    assert (found.id, found.source, found.audio, found.group, found.split) == (
        "calls/A",
        "calls",
        "a.wav",
        "show",
        "val",
    )
    assert (found.lang, found.licence, found.two_channel) == (None, "CC0", "yes")
    assert (found.seconds, found.sample_rate, found.channels) == (1.5, 44100, 2)
    assert found.codec_format == "wav/pcm_24" and found.locator == Locator(str(tmp_path / "a.wav"))
    assert found.turns[0].text == "from 0.5 to 1.0"
    assert {rejection.recording: rejection.reason for rejection in plan.rejections} == {
        "calls/gone.wav": "audio_missing",
        "calls/short.wav": "recording_too_short",
    }
    assert plan.recording("calls/A") == found and list(plan.first_splits()) == [("calls/A", "show", "val")]
    with pytest.raises(KeyError):
        plan.recording("calls/B")


# ------------------------------------------------------------------------------------------- determinism


@pytest.fixture
def many(tmp_path) -> Path:
    """30 recordings of 1 to 2.9 s in 7 groups, one of them twice."""
    rows = []
    for n in range(30):
        content = min(n, 28)
        soundfile.write(tmp_path / f"{n}.wav", noise(1 + content % 20 / 10, 8000, content), 8000)
        rows.append({"audio": f"{n}.wav", "group": f"show {n % 7}", "turns": [turn("a", 0.1, 0.9)]})
    return write_manifest(tmp_path / "many.jsonl", rows)


def test_plan_does_not_depend_on_order_or_workers(many, plan_of, tmp_path):
    seconds = 12 / 3600
    plan_of(many, "one", unit_hours=seconds, workers=1)
    lines = many.read_text().splitlines()
    np.random.default_rng(1).shuffle(lines)
    many.write_text("\n".join(lines))
    plan_of(many, "two", unit_hours=seconds, workers=7)
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two") and one.keys() == {
        "plan.json",
        "recordings.parquet",
        "units.parquet",
        "rejects.parquet",
    }


@pytest.mark.parametrize("seconds", [1.5, 6, 12, 1000])
def test_units_hold_whole_groups_where_they_fit(many, plan_of, seconds):
    plan = plan_of(many, unit_hours=seconds / 3600)
    units = [plan.recordings(unit.id) for unit in plan.units]
    assert sum(map(len, units)) == 29  # one of 30 is there twice
    assert len(units) > 4 or seconds == 1000
    for unit, members in zip(plan.units, units, strict=True):
        assert (unit.recordings, unit.seconds) == (len(members), sum(member.seconds for member in members))
        assert unit.seconds <= seconds or len(members) == 1
    of_group = {}
    for number, members in enumerate(units):
        for member in members:
            of_group.setdefault(member.group, []).append((number, member.seconds))
    for places in of_group.values():
        assert len({number for number, _ in places}) == 1 or sum(length for _, length in places) > seconds
    order = [(member.group, member.id) for members in units for member in members]
    assert order == sorted(order)


def test_a_unit_is_read_without_the_others(many, plan_of, monkeypatch):
    """Also where a file of recordings has several row groups with several units in each."""
    monkeypatch.setattr(plan_files, "_ROWS", 8)
    plan = plan_of(many, unit_hours=6 / 3600)
    file = pq.ParquetFile(plan.folder / "recordings.parquet")
    assert 1 < file.num_row_groups < len(plan.units)
    all_rows = file.read().to_pylist()
    for unit in plan.units:
        want = [row["id"] for row in all_rows if row["unit"] == unit.id]
        assert [recording.id for recording in plan.recordings(unit.id)] == want and want
    assert load_plan(plan.folder).units == plan.units


def test_small_sets_are_divided_so_that_all_workers_have_work(tmp_path, plan_of):
    (tmp_path / "in").mkdir()
    for n in range(3):
        soundfile.write(tmp_path / "in" / f"{n}.wav", noise(200.0, 1000, n), 1000)
    assert [unit.recordings for unit in plan_of(tmp_path / "in").units] == [1, 1, 1]
    assert unit_seconds(60.0, 4 * 3600) == 300  # no unit for a minute
    assert unit_seconds(2 * 3600, 4 * 3600) == 300 and unit_seconds(100 * 3600, 4 * 3600) == 100 * 3600 / 64
    assert unit_seconds(1e6 * 3600, 4 * 3600) == 4 * 3600 and unit_seconds(2 * 3600, 60) == 60


def test_limit_takes_the_first_of_each_source_by_id(many, plan_of):
    sources = {"x": SourceConfig(str(many)), "y": SourceConfig(str(many))}
    plan = plan_of(None, sources=sources, limit=3)
    names = [f"local/{n}.wav".replace("local", "x") for n in (0, 1, 10)]
    assert sorted(recordings_of(plan)) == names
    assert {rejection.recording for rejection in plan.rejections} == {name.replace("x/", "y/") for name in names}


# ------------------------------------------------------------------------------------ a plan that is there


def test_the_same_inputs_are_accepted_and_others_refused(many, plan_of, tmp_path):
    first = plan_of(many)
    before = content(tmp_path / "work")
    assert plan_of(many).hash == first.hash and content(tmp_path / "work") == before
    soundfile.write(tmp_path / "new.wav", noise(2.0, RATE, 99), RATE)
    lines = many.read_text().splitlines()
    many.write_text("\n".join([*lines[1:], '{"audio": "new.wav"}']))
    with pytest.raises(ValueError, match=r"1 new recordings, 1 gone\); use another work=\.\.\., or plan\.update=true"):
        plan_of(many)
    soundfile.write(tmp_path / "3.wav", noise(2.0, RATE, 98), RATE)
    with pytest.raises(ValueError, match=r"1 changed, such as local/3\.wav\); use another work"):
        plan_of(many)
    with pytest.raises(ValueError, match=r"was planned with plan\.unit_hours=4\.0; keep that, or use another work"):
        plan_of(many, unit_hours=2.0)
    (tmp_path / "3.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="1 new recordings, 2 gone"):
        plan_of(many)
    shutil.rmtree(tmp_path / "work" / "probed")
    assert content(tmp_path / "work") == before


def test_update_plans_only_what_is_new(many, plan_of, tmp_path):
    first = plan_of(many, unit_hours=12 / 3600)
    units, old = list(first.units), recordings_of(first)
    kept = {name: data for name, data in content(tmp_path / "work").items() if name != "plan.json"}
    for n in range(3):
        soundfile.write(tmp_path / f"new{n}.wav", noise(5.0, RATE, 100 + n), RATE)
    shutil.copy(tmp_path / "7.wav", tmp_path / "00.wav")  # sorts before, but came later
    (tmp_path / "bad.wav").write_text("no audio")
    names = ["new0.wav", "new1.wav", "new2.wav", "00.wav", "bad.wav"]
    many.write_text(many.read_text() + "".join(json.dumps({"audio": name}) + "\n" for name in names))
    with pytest.raises(ValueError, match="3 new recordings, 0 gone, 2 more rejected"):
        plan_of(many, unit_hours=12 / 3600)
    second = plan_of(many, unit_hours=12 / 3600, update=True)
    assert second.units[: len(units)] == units and len(second.units) == len(units) + 2
    now = recordings_of(second)
    assert now.keys() - old.keys() == {"local/new0.wav", "local/new1.wav", "local/new2.wav"}
    assert all(now[name] == recording for name, recording in old.items())
    assert {(rejection.recording, rejection.reason) for rejection in second.rejections} == {
        ("local/00.wav", "duplicate_file"),
        ("local/29.wav", "duplicate_file"),
        ("local/bad.wav", "audio_corrupt"),
    }
    after = content(tmp_path / "work")
    assert all(after[name] == data for name, data in kept.items())
    for update in (False, True):  # this is now the plan of these inputs
        assert plan_of(many, unit_hours=12 / 3600, update=update).hash == second.hash != first.hash
    assert content(tmp_path / "work") == after


def test_interrupted_writing_leaves_no_plan_or_the_old_one(many, plan_of, tmp_path, monkeypatch):
    def die(*arguments: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plan_files, "_hash", die)  # after all tables, before plan.json
        with pytest.raises(KeyboardInterrupt):
            plan_of(many)
    with pytest.raises(FileNotFoundError, match="nothing is planned there; start with: python -m data_prep plan"):
        load_plan(tmp_path / "work")
    first = plan_of(many)
    soundfile.write(tmp_path / "new.wav", noise(2.0, RATE, 99), RATE)
    many.write_text(many.read_text() + '{"audio": "new.wav"}\n')
    with monkeypatch.context() as patch:
        patch.setattr(plan_files, "_hash", die)
        with pytest.raises(KeyboardInterrupt):
            plan_of(many, update=True)
    assert load_plan(tmp_path / "work").hash == first.hash
    updated = plan_of(many, update=True)
    assert len(recordings_of(updated)) == len(recordings_of(first)) + 1


def test_files_are_read_once_for_all_plans_and_again_when_they_change(many, plan_of, tmp_path, monkeypatch):
    """Probes are cached by size, modification time, and that of the last change, which programs cannot set."""
    first = plan_of(many)
    read: list[str] = []

    def counted(locator: Locator, name: str, key: str = "") -> Probe:
        read.append(name)
        return probe(locator, name, key)

    monkeypatch.setattr("data_prep.inputs.plan.probe", counted)
    assert plan_of(many).hash == first.hash and read == []
    file = tmp_path / "5.wav"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match=r"1 changed, such as local/5\.wav"):
        plan_of(many)
    assert read == ["5.wav"]


def test_storage_that_fails_rejects_a_file_as_failed(tmp_path):
    (tmp_path / "folder.wav").mkdir()  # reading it is an OSError that is not "not found", for every user
    found = probe(Locator(str(tmp_path / "folder.wav")), "folder.wav")
    assert found.reason == "failed" and "folder.wav" in found.message


def test_requests_that_cannot_be_met_are_one_line(many, plan_of, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_text("no audio")
    for arguments, message in [
        ({"source": None}, "give either input=PATH, or +sources="),
        ({"source": many, "sources": {"x": SourceConfig(str(many))}}, "give either input=PATH, or +sources="),
        ({"source": None, "sources": {"a/b": SourceConfig(str(many))}}, "source 'a/b': a name must consist of"),
        ({"source": tmp_path / "bad"}, "no recording can be used (audio_corrupt 1); the first: local/x.wav: x.wav"),
    ]:
        with pytest.raises(ValueError) as error:
            plan_of(**arguments)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "work" / "plan.json").exists()
