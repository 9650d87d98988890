"""`plan` says what it made of a source: nothing is used, left out or transcribed without a line."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from layouts import text, wav
from made_recordings import calls_manifest, write_manifest

from csm.data.dataset import ShardedDataset
from data_prep.config import DataPrepConfig, PlanConfig, TranscribeBackend
from data_prep.inputs.plan import Plan, load_plan, make_plan
from data_prep.main import main
from data_prep.prepare import prepare
from data_prep.report.report import REPORT_FILE

REPOSITORY = Path(__file__).resolve().parents[2]


def plan_of(source: Path, output: Path, backend: TranscribeBackend | None = None, **options) -> Plan:
    cfg = DataPrepConfig(input=str(source), output=str(output), plan=PlanConfig(**options))
    cfg.transcribe.backend = backend or cfg.transcribe.backend
    return make_plan(cfg)


def lines(plan: Plan) -> list[str]:
    (source,) = plan.understood
    return source.lines()


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder with one of everything."""
    folder = tmp_path / "mixed"
    for name in ("turns", "text", "nothing1", "nothing2"):
        wav(folder / f"{name}.wav")
    text(folder / "turns.json", json.dumps({"turns": [{"speaker": "a", "start": 0, "end": 1}], "split": "val"}))
    text(folder / "text.txt", "Hi.")
    text(folder / "lone.txt", "Of nothing.")
    text(folder / "table.xlsx", "x")
    text(folder / "a.trs", "x"), text(folder / "b.trs", "x")
    text(folder / "broken.wav", "no audio")
    return folder


def test_the_account_of_a_source(mixed, tmp_path):
    found = lines(plan_of(mixed, tmp_path / "out"))
    assert found.pop(9).startswith("  left out, audio_corrupt: 1: broken.wav (")
    assert found == [
        "local: 4 recordings, 0.00 hours, as files 5",
        "  1 with turns (2 turns in all), 1 with a text only, 2 with nothing",
        "  languages: en 4",
        "  to be transcribed: 2 recordings, and 1 turns without a text",
        "  splits: not given 3, val 1",
        "  set aside: 2: a.trs, b.trs, .trs (Transcriber annotation, export it as STM)",
        "  set aside: 1: table.xlsx, .xlsx",
        "  annotations without audio: 1: lone.txt",
        "  audio without annotation: 2: nothing1.wav, nothing2.wav",
        "  left out, audio_missing: 1: lone (lone.txt describes it, but there is no audio file of that name)",
    ]
    without = lines(plan_of(mixed, tmp_path / "none", TranscribeBackend.none))
    assert "  without a text, and there is no recognizer (transcribe=none): 2 recordings, 1 turns" in without


@pytest.mark.parametrize("name", ["lone.txt", "table.xlsx", "broken.wav", "nothing1.wav"])
def test_strict_makes_each_loss_an_error(tmp_path, name):
    folder = tmp_path / "in"
    wav(folder / "a.wav"), text(folder / "a.txt", "Hi.")
    plan_of(folder, tmp_path / "out", strict=True)
    if name.startswith("nothing"):
        wav(folder / name)
    else:
        text(folder / name, "x")
    with pytest.raises(ValueError, match=r"^plan\.strict: local: ") as error:
        plan_of(folder, tmp_path / "out2", strict=True)
    assert Path(name).stem in str(error.value) and not (tmp_path / "out2.work" / "plan.json").exists()


def test_strict_accepts_what_has_no_annotation_at_all_and_test_splits(tmp_path):
    wav(tmp_path / "raw" / "a.wav"), wav(tmp_path / "raw" / "b.wav")
    plan_of(tmp_path / "raw", tmp_path / "out", strict=True)
    for split in ("train", "test"):
        wav(tmp_path / "split" / split / "a.wav")
    plan = plan_of(tmp_path / "split", tmp_path / "out2", strict=True)
    assert "  left out as the data say, test_split: 1" in lines(plan)


def test_of_equal_files_the_annotated_one_is_kept(tmp_path):
    wav(tmp_path / "in" / "raw" / "x.wav", seed=1), wav(tmp_path / "in" / "text" / "x.wav", seed=1)
    text(tmp_path / "in" / "text" / "x.txt", "The true words.")
    plan = plan_of(tmp_path / "in", tmp_path / "out")
    (recording,) = plan.recordings(plan.units[0].id)
    assert recording.turns[0].text == "The true words." and recording.audio == "text/x.wav"
    assert [rejection.audio for rejection in plan.rejections] == ["raw/x.wav"]


# ---------------------------------------------------------------------------------------- corrected texts


def test_a_corrected_text_plans_its_unit_again_and_no_other(tmp_path):
    rows = []
    for n in range(4):
        wav(tmp_path / f"{n}.wav", 2.0)
        rows.append({"audio": f"{n}.wav", "turns": [{"speaker": "a", "text": f"Text {n}."}]})
    source = write_manifest(tmp_path / "m.jsonl", rows)
    first = plan_of(source, tmp_path / "out", unit_hours=4 / 3600)
    before = [unit.id for unit in first.units]
    rows[3]["turns"][0]["text"] = "The corrected text."
    write_manifest(source, rows)
    second = plan_of(source, tmp_path / "out", unit_hours=4 / 3600)
    after = [unit.id for unit in second.units]
    assert second.corrected == ["local/3.wav"] and len(before) == len(after) == 2 and after[0] == before[0]
    assert second.recording("local/3.wav").turns[0].text == "The corrected text."
    assert sorted(row["id"] for row in second.columns("id")) == [f"local/{n}.wav" for n in range(4)]
    (changed,) = set(after) - set(before)
    assert [recording.id for recording in second.recordings(changed)] == ["local/2.wav", "local/3.wav"]
    again = plan_of(source, tmp_path / "out", unit_hours=4 / 3600)
    assert again.hash == second.hash != first.hash and again.corrected == []
    assert load_plan(tmp_path / "out.work").units == second.units
    wav(tmp_path / "0.wav", 2.0, seed=7)  # other sound is another recording
    with pytest.raises(ValueError, match=r"1 changed, such as local/0\.wav"):
        plan_of(source, tmp_path / "out", unit_hours=4 / 3600)
    updated = plan_of(source, tmp_path / "out", unit_hours=4 / 3600, update=True)
    assert updated.units[0].id == changed and updated.units[1].id not in before
    rows[3]["turns"][0]["text"] = "Text 3."  # as it was
    write_manifest(source, rows)
    restored = plan_of(source, tmp_path / "out", unit_hours=4 / 3600)
    assert {unit.id for unit in restored.units} == {before[1], updated.units[1].id}
    assert restored.recording("local/3.wav").turns[0].text == "Text 3."
    assert sorted(row["id"] for row in restored.columns("id")) == [f"local/{n}.wav" for n in range(4)]


@pytest.mark.slow
def test_a_corrected_text_reaches_the_dataset(config, tmp_path):
    source = calls_manifest(tmp_path)
    prepare(config(source))
    source.write_text(source.read_text().replace("from 0.1 to 1.1", "Corrected.", 1))
    prepare(config(source, overwrite=True))
    dataset = ShardedDataset(tmp_path / "out")
    texts = [turn.text for sample in map(dataset.read, range(len(dataset))) for turn in sample.turns]
    assert texts.count("Corrected.") == 1 and texts.count("from 0.1 to 1.1") == 4


@pytest.mark.slow
def test_a_finished_dataset_without_a_report_gets_it(config, tmp_path):
    source = calls_manifest(tmp_path)
    prepare(config(source))
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.tar")}
    with pytest.raises(ValueError, match="already holds a prepared dataset"):
        prepare(config(source))
    (tmp_path / "out" / REPORT_FILE).unlink()
    with pytest.raises(ValueError, match="already holds a prepared dataset"):  # of other options
        prepare(config(source, **{"conversation.max_turns": 2}))
    prepare(config(source))
    assert (tmp_path / "out" / REPORT_FILE).is_file()
    assert shards == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.tar")}


# -------------------------------------------------------------------------------------- the command line


@pytest.fixture
def program(monkeypatch, capsys) -> Callable[..., tuple[str, str]]:
    """Runs the command line in this process -> stdout, stderr; it must end well."""

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["data_prep", *words])
        monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])  # Hydra sets up others
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code in (0, None), err
        return out, err

    return run


def test_plan_without_a_terminal_prints_plain_lines_for_any_path(tmp_path, program, monkeypatch):
    """A home directory, blanks, a comma, parentheses, an apostrophe, = and brackets in the path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "Ann's calls (May, 2024) [a=b]"
    for n in range(3):
        wav(folder / f"{n}.wav")
    out, err = program("plan", f"input=~/{folder.name}", f"output={tmp_path / 'o u,t'}", "--strict")
    assert err.splitlines()[-1].startswith("Planning 3/3 files, 0.00 hours") and "\x1b" not in err
    assert "local: 3 recordings" in out and (tmp_path / "o u,t.work" / "plan.json").is_file()


def test_help_names_commands_options_and_examples(program):
    out, _ = program("plan", "--help")
    for words in ("Commands: all", "export", "plan input=~/calls", "--strict", "plan.unit_hours=4.0", "status: show"):
        assert words in out, words


def test_warnings_of_loggers_that_exist_already_reach_the_terminal(tmp_path, mixed, program):
    """Hydra's logging switches off all loggers that there are when it is set up; ours does not."""
    logger = logging.getLogger("data_prep.audio.recording")
    _, err = program("plan", f"input={mixed}", f"output={tmp_path / 'out'}")
    assert "WARNING: local: not all of it is used: 2 .trs (Transcriber annotation" in err
    logger.warning("its channels cancel each other")
    assert not logger.disabled and logger.isEnabledFor(logging.WARNING)


@pytest.mark.slow
def test_the_first_word_comes_before_the_libraries(tmp_path):
    """The libraries take seconds to import; the word comes at once in a terminal and in a log."""
    wav(tmp_path / "in" / "a.wav")
    command = [sys.executable, "-X", "importtime", "-m", "data_prep", "plan", f"input={tmp_path / 'in'}"]
    done = subprocess.run([*command, f"output={tmp_path / 'out'}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stderr.split("data_prep plan: loading ...")[0]
    assert "hydra" in imported and not any(
        f" {name}\n" in imported for name in ("torch", "scipy", "transformers", "av")
    )
