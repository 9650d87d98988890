"""Results that an evaluation keeps between runs: after kill -9, with another judge, and over several ranks."""

import json
import multiprocessing
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from csm.config import AsrKind, EvalConfig, EvaluateConfig, SpeakerKind
from csm.evaluation import summary
from csm.evaluation.run import evaluate
from csm.evaluation.store import Share, StageLog, Store
from csm.inference.engine import Engine
from csm.judges.measures import MEASURES, AudioMeasure


def evaluate_voices(checkpoint: Path | str, output: Path | str) -> None:
    """A small evaluation with one judge, in a process of its own."""
    torch.set_num_threads(1)  # sums over other partitions differ in the last bits
    summary.code_version = dict  # the checkout may be worked in meanwhile
    settings = EvalConfig("test", split="train", max_prompts=4, max_audio_seconds=0.8, seeds=[0, 1])
    settings.asr, settings.asr_model, settings.bootstrap_samples = AsrKind.faster_whisper, "no-such-folder", 50
    settings.speaker_model_kind = SpeakerKind.resemblyzer
    evaluate(EvaluateConfig(str(checkpoint), output=str(output), eval=settings))


def request(checkpoint: Path, output: Path, **options) -> EvaluateConfig:
    """An evaluation without Whisper, which takes longest."""
    settings = {
        "name": "test",
        "split": "train",
        "max_prompts": 4,
        "max_audio_seconds": 0.4,
        "asr": AsrKind.faster_whisper,
        "asr_model": "no-such-folder",
        "speaker_model_kind": SpeakerKind.wavlm,
        "speaker_model": "no-such-folder",
        "bootstrap_samples": 50,
    }
    return EvaluateConfig(checkpoint=str(checkpoint), output=str(output), eval=EvalConfig(**settings | options))


def without_times(folder: Path) -> dict[str, str]:
    """The four files of a report, without what was measured."""
    files = {name: (folder / name).read_text() for name in ("report.html", "report.md", "utterances.jsonl")}
    files["report.html"] = re.sub(r"<!-- timings -->.*?<!-- /timings -->", "", files["report.html"], flags=re.DOTALL)
    files["utterances.jsonl"] = re.sub(r'"compute_seconds": [\d.]+', "", files["utterances.jsonl"])
    results = json.loads((folder / "results.json").read_text())
    del results["timings"]
    return files | {"results.json": json.dumps(results, indent=1)}


def records(folder: Path, stage: str) -> list[str]:
    """Keys of the records of a stage, over all ranks."""
    lines = [line for path in folder.glob(f"stages/rank*/{stage}.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["key"] for line in lines]


@pytest.mark.slow
def test_killed_at_ten_moments_it_gives_the_same_report(checkpoint, tmp_path):
    """Kill -9 at moments over the whole length, each after the last one's run was resumed."""
    whole, output, moments = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    # Each run is a process of its own, forked from one that has imported everything, which would take most of the time.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["csm.evaluation.run", "csm.judges.measures", "resemblyzer"])
    run_to_its_end(processes, checkpoint, whole)
    total = len(records_of_a_killed_run(whole))
    killed_at = []
    for wanted in sorted(moments.sample(range(total), 10)):
        process = processes.Process(target=evaluate_voices, args=(checkpoint, output))
        process.start()
        deadline = time.monotonic() + 60
        while len(records_of_a_killed_run(output)) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))  # into the middle of a step
        assert process.is_alive(), "it should not have come to its end"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(len(records_of_a_killed_run(output)))
    assert not (output / "results.json").exists() and len(set(killed_at)) >= 5 and killed_at[-1] > total / 2
    run_to_its_end(processes, checkpoint, output)
    assert without_times(output) == without_times(whole)
    for stage in ("speech", "voice-*"):
        keys = Counter(records(output, stage))
        assert set(keys.values()) == {1} and set(keys) == set(records(whole, stage))


def run_to_its_end(processes: multiprocessing.context.BaseContext, checkpoint: Path, output: Path) -> None:
    process = processes.Process(target=evaluate_voices, args=(checkpoint, output))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def records_of_a_killed_run(folder: Path) -> list[str]:
    return [line for path in folder.glob("stages/rank*/*.jsonl") for line in path.read_text().split("\n")[:-1]]


@pytest.mark.slow
def test_ranks_share_the_items_and_the_last_one_reports(checkpoint, tmp_path, monkeypatch, hub_cache):
    for rank in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        written = evaluate(request(checkpoint, tmp_path / "shared"))
        assert (written is None) == (rank == 0)
    monkeypatch.delenv("WORLD_SIZE")
    parts = [len((tmp_path / f"shared/stages/rank{rank}/speech.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert parts == [6, 6]  # 4 recordings, their resynthesis, 4 turns
    assert without_times(tmp_path / "shared") == without_times(evaluate(request(checkpoint, tmp_path / "alone")))


class Loudness:
    """A measure as a user would add one."""

    name, values = "Loudness", ("peak",)

    def __init__(self, device: str) -> None:
        self.device = device

    def measure(self, audio, sample_rate):
        return {"peak": float(audio.abs().max())}

    def describe(self):
        return {"name": self.name, "version": 1}


@pytest.mark.slow
def test_new_measure_needs_no_new_speech_and_a_new_prompt_only_its_own(checkpoint, tmp_path, monkeypatch, hub_cache):
    loader: type[AudioMeasure] = Loudness
    monkeypatch.setitem(MEASURES, "peak", loader)
    evaluate(request(checkpoint, tmp_path / "report", max_prompts=3))
    made = records(tmp_path / "report", "speech")

    spoken = []
    submit = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda engine, turn: spoken.append(turn) or submit(engine, turn))
    evaluate(request(checkpoint, tmp_path / "report", max_prompts=3, measures=["peak"]))
    assert spoken == [] and records(tmp_path / "report", "speech") == made
    systems = json.loads((tmp_path / "report/results.json").read_text())["systems"]
    assert 0 < systems["ground_truth"]["metrics"]["peak"]["value"] <= 1
    evaluate(request(checkpoint, tmp_path / "report", max_prompts=4))
    assert len(spoken) == 1
    evaluate(request(checkpoint, tmp_path / "report", max_prompts=4, temperature=0.8))
    assert len(spoken) == 5


def test_torn_line_is_cut_off_and_its_item_made_again(tmp_path):
    (tmp_path / "rank0").mkdir()
    log = StageLog(tmp_path, "speech", 0)
    log.add("a", seconds=1.0)
    with (tmp_path / "rank0/speech.jsonl").open("a") as file:
        file.write('{"key": "b", "sec')
    log = StageLog(tmp_path, "speech", 0)
    assert "a" in log and "b" not in log
    log.add("b", seconds=2.0)
    assert [json.loads(line)["key"] for line in (tmp_path / "rank0/speech.jsonl").read_text().splitlines()] == [
        "a",
        "b",
    ]


def test_two_processes_do_not_write_as_the_same_rank(tmp_path):
    again = pytest.raises(ValueError, match="another process evaluates into this folder")
    with Store(tmp_path, 0).writing(), Store(tmp_path, 1).writing(), again, Store(tmp_path, 0).writing():
        raise AssertionError


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, Share(0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Share(2, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}, Share(2, 3)),
    ],
)
def test_share_of_launchers(monkeypatch, variables, share):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Share.from_environment() == share
    assert sorted(item for rank in range(3) for item in Share(rank, 3).of(range(10))) == list(range(10))


def test_unknown_measure_and_suite_are_named(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"eval\.measures: no measure is called 'charm'"):
        evaluate(request(checkpoint, tmp_path / "report", measures=["charm"]))
    with pytest.raises(ValueError, match=r"eval\.suite: no suite is called 'charm'; known: .*turns"):
        evaluate(request(checkpoint, tmp_path / "report", suite="charm"))


@pytest.mark.slow
def test_report_is_sent_to_wandb_when_asked(checkpoint, tmp_path, monkeypatch, hub_cache):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = request(checkpoint, tmp_path / "report", max_prompts=2)
    options.wandb_project = "speech"
    evaluate(options)
    [table] = tmp_path.glob("wandb/offline-run-*/files/media/table/eval/turns/items*.json")
    rows = json.loads(table.read_text())["data"]
    assert len(rows) == 2 and all("no end of speech" in row[-2] and row[-1] == "Audio" for row in rows)
