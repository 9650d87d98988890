"""Units with stages made for the tests: repetition of stages, isolation of failures, and dead workers."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from csm.judges.hub import ModelUnavailable
from data_prep.config import DiarizeConfig, TranscribeConfig
from data_prep.execution import unit as unit_module
from data_prep.execution.unit import EXIT_TIMEOUT, UnitLocked, fingerprints, run_unit
from data_prep.execution.unit_files import StageFiles
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Locator, Recording, Span
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.transcribe import TranscribeStage

UNIT = "unit-0"


@dataclass
class Options:
    factor: float = 1.0


@dataclass
class Doubling:
    """A span from each recording, or what its id asks for."""

    name: str = "first"
    reads: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    version: int = 1
    group_seconds: float = 25.0
    backend: str = "made"
    device: str = "cpu"
    result: type = Span

    def __post_init__(self) -> None:
        self.groups: list[list[str]] = []
        self.misbehaves: dict[str, object] = {}

    def process(self, items):
        self.groups.append([item.recording.id for item in items])
        for item in items:
            action = self.misbehaves.get(item.recording.id)
            if callable(action):
                action()
        starts = [sum(item.results[name].end for name in self.reads) for item in items]
        return [
            Span(start, start + self.options.factor * i.recording.seconds)
            for start, i in zip(starts, items, strict=True)
        ]


def recordings(*ids: str) -> list[Recording]:
    made = []
    for number, name in enumerate(ids):
        values = {"source": "s", "audio": f"{name}.wav", "locator": Locator(f"/{name}.wav"), "group": name}
        values |= {"split": None, "lang": "en", "licence": "x", "sha256": name, "seconds": 10.0 + number}
        values |= {"sample_rate": 8000, "channels": 1, "codec_format": "wav", "turns": None, "two_channel": "auto"}
        made.append(Recording(id=name, **{k: v for k, v in values.items() if k in Recording.__dataclass_fields__}))
    return made


def raising(error: BaseException, times: int = 10**6):
    left = [times]

    def action() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise error

    return action


def stages() -> list[Doubling]:
    return [Doubling(), Doubling("second", ("first",)), Doubling("third", ("second",)), Doubling("aside", ("first",))]


def results(work: Path, stage: Doubling, all_stages: list[Doubling]) -> dict[str, Span]:
    files = StageFiles(work / "units" / UNIT, stage.name, fingerprints(all_stages)[stage.name], Span)
    return files.read()[0]


def test_what_is_done_is_not_repeated(tmp_path):
    run_unit(tmp_path, UNIT, recordings("a", "b", "c"), stages())
    again = stages()
    report = run_unit(tmp_path, UNIT, recordings("a", "b", "c"), again)
    assert report.repeated == [] and all(stage.groups == [] for stage in again)
    assert results(tmp_path, again[2], again)["b"] == Span(22.0, 33.0)


def test_changed_options_repeat_the_stage_and_its_descendants_only(tmp_path):
    run_unit(tmp_path, UNIT, recordings("a", "b"), stages())
    changed = stages()
    changed[1].options = Options(3.0)
    assert run_unit(tmp_path, UNIT, recordings("a", "b"), changed).repeated == ["second", "third"]
    assert run_unit(tmp_path, UNIT, recordings("a", "b"), stages()).repeated == []  # the first results are kept


def test_what_a_gpu_ran_is_done_for_a_machine_without_one():
    for stage, cfg in ((DiarizeStage, DiarizeConfig), (TranscribeStage, TranscribeConfig)):
        of_cpu, of_gpu = stage(cfg(device="cpu")), stage(cfg(device="cuda"))
        of_cpu.reads = of_gpu.reads = ()
        assert fingerprints([of_cpu]) == fingerprints([of_gpu])
        assert of_gpu.device == "cuda"


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_file_that_is_there_is_not_taken_for_done(tmp_path, damage):
    run_unit(tmp_path, UNIT, recordings("a", "b"), stages())
    (file,) = (tmp_path / "units" / UNIT).glob("second-*[0-9a-f].parquet")
    data = file.read_bytes()
    if damage == "missing":
        next(file.parent.glob("second-*.json")).unlink()
    else:
        file.write_bytes(data[:-9] if damage == "cut" else data[:50] + b"\0" + data[51:])
    assert run_unit(tmp_path, UNIT, recordings("a", "b"), stages()).repeated == ["second"]
    assert file.read_bytes() == data


def test_groups_hold_as_much_audio_as_the_stage_wants(tmp_path):
    stage = Doubling()
    run_unit(tmp_path, UNIT, recordings("a", "b", "c", "d"), [stage])  # 10, 11, 12, 13 s; 25 s together
    assert stage.groups == [["a", "b"], ["c", "d"]]


def test_one_unusable_recording_costs_no_other(tmp_path):
    made = stages()
    made[1].misbehaves["b"] = raising(RejectedRecording(Reason.no_speech, "b: nobody speaks"))
    report = run_unit(tmp_path, UNIT, recordings("a", "b", "c"), made)
    assert report.rejected == {"no_speech": 1}
    assert made[1].groups == [["a", "b"], ["a"], ["b"], ["c"]]
    assert sorted(results(tmp_path, made[2], made)) == ["a", "c"]
    assert sorted(results(tmp_path, made[3], made)) == ["a", "c"]


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    stage = Doubling(group_seconds=0)
    stage.misbehaves["a"] = raising(ConnectionResetError("gone"), times=2)
    stage.misbehaves["b"] = raising(ConnectionResetError("gone"))
    stage.misbehaves["c"] = raising(KeyError("odd"))
    report = run_unit(tmp_path, UNIT, recordings("a", "b", "c"), [stage])
    assert stage.groups == [["a"]] * 3 + [["b"]] * 3 + [["c"]]
    assert report.rejected == {"failed": 2} and sorted(results(tmp_path, stage, [stage])) == ["a"]
    assert "ConnectionResetError" in capsys.readouterr().err


def test_missing_model_or_full_disk_ends_the_run_and_rejects_nobody(tmp_path):
    for error in (
        ModelUnavailable("no silero"),
        FileNotFoundError("no such model"),
        ModuleNotFoundError("no whisper"),
        OSError(28, "disk full"),
    ):
        stage = Doubling()
        stage.misbehaves["a"] = raising(error)
        with pytest.raises(type(error)):
            run_unit(tmp_path, UNIT, recordings("a", "b"), [stage])
    assert run_unit(tmp_path, UNIT, recordings("a", "b"), [Doubling()]).rejected == {}


def test_a_stage_that_fails_whatever_it_is_given_ends_the_run(tmp_path):
    stage = Doubling(group_seconds=0)
    names = [f"r{n}" for n in range(8)]
    for name in names[1:]:
        stage.misbehaves[name] = raising(TypeError("a mistake in the program"))
    with pytest.raises(
        RuntimeError, match=r"stage first \(made\) failed for 5 recordings in a row, last r5: TypeError"
    ):
        run_unit(tmp_path, UNIT, recordings(*names), [stage])


def test_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(unit_module, "LOCK_SECONDS", 0.1)
    stage = Doubling()

    def inner() -> None:
        with pytest.raises(UnitLocked, match="another process is working on this unit"):
            run_unit(tmp_path, UNIT, recordings("a"), stages())

    stage.misbehaves["a"] = inner
    assert run_unit(tmp_path, UNIT, recordings("a"), [stage]).rejected == {}


# ------------------------------------------------------------------------------------------- deaths


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(60)


def _die_of(work: Path, poison: str, action) -> None:
    unit_module.MIN_TIMEOUT_SECONDS = 0.3
    made = stages()
    made[1].misbehaves[poison] = action
    run_unit(work, UNIT, recordings("a", "b", "c", "d"), made, timeout_factor=0.01)


@pytest.mark.parametrize(
    ("action", "code", "reason"), [(_kill, -signal.SIGKILL, "crashed"), (_hang, EXIT_TIMEOUT, "timeout")]
)
def test_a_recording_that_kills_its_process_is_left_out_after_three_deaths(tmp_path, action, code, reason):
    context = multiprocessing.get_context("fork")
    codes = []
    while not codes or codes[-1] != 0:
        process = context.Process(target=_die_of, args=(tmp_path, "b", action))
        process.start()
        process.join()
        codes.append(process.exitcode)
        assert len(codes) < 10
    assert codes == [code, code, code, 0]
    made = stages()
    report = run_unit(tmp_path, UNIT, recordings("a", "b", "c", "d"), made)
    assert report.repeated == [] and report.rejected == {reason: 1}
    assert sorted(results(tmp_path, made[3], made)) == ["a", "c", "d"]
