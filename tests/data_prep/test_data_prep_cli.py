"""The command line: steps one by one, mistakes in one line, exit codes."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from made_recordings import calls_manifest, comparable, noise

from csm.data.dataset import ShardedDataset
from data_prep.main import main
from data_prep.prepare import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["codec=spectral", "codec.num_codebooks=5", "codec.codebook_size=23", "strict=off"]
SMALL += ["executor=inline", "pack.workers=1", "report.conversations=1"]


@pytest.fixture
def calls(tmp_path) -> Path:
    return calls_manifest(tmp_path)


@pytest.fixture
def program(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`program(argument, ...)`: runs the command line in this process -> exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data_prep", *arguments])
        monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])  # Hydra sets up others
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def test_mistakes_on_the_command_line_are_one_line_and_exit_2(calls, config, tmp_path, program):
    prepare(config(calls))
    out = tmp_path / "out"
    mistakes = {
        (
            f"input={calls}",
            f"output={out}",
        ): f"{out}: already holds a prepared dataset; add overwrite=true to replace it",
        (f"output={out}2",): "give either input=PATH, or +sources=",
        ("verify", f"output={tmp_path}"): f"{tmp_path}: not a prepared dataset",
        ("prepair", f"input={calls}"): "unknown command 'prepair'; known are all, demo, plan, run",
        (f"input={tmp_path / 'x'}", f"output={tmp_path / 'y'}"): f"{tmp_path / 'x'}: no such input",
        (
            f"input={calls}",
            f"output={tmp_path / 'y'}",
            "conversation.max_turns=0",
        ): "conversation.max_turns=0 must be greater than 0",
    }
    for arguments, message in mistakes.items():
        code, _, stderr = program(*arguments)
        assert code == 2 and stderr.startswith(f"error: {message}") and stderr.count("\n") == 1


def test_missing_weights_of_the_codec_are_told_before_planning(calls, tmp_path, program):
    for options, message in (
        (["codec=mimi", f"codec.path={tmp_path / 'mimi.safetensors'}"], "give Mimi's weights with codec.path=FILE"),
        (["codec=spectral", f"codec.path={tmp_path / 'gone.safetensors'}"], "gone.safetensors"),
    ):
        code, stdout, stderr = program(f"input={calls}", f"output={tmp_path / 'out'}", *options)
        assert code == 2 and stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1
        assert not stdout and not (tmp_path / "out.work").exists()


def test_a_unit_that_fails_is_one_line_whichever_command_runs_it(tmp_path, program):
    """Exit code 1: it may succeed later. Here a model is missing, which only the unit's recognizer notices."""
    soundfile.write(tmp_path / "a.wav", noise(2.0, 16000, 1), 16000)
    words = [
        f"input={tmp_path / 'a.wav'}",
        *SMALL,
        "vad=none",
        "diarize=single",
        f"transcribe.model={tmp_path / 'gone'}",
    ]
    for n, command in enumerate(([], ["run"])):
        output = f"output={tmp_path / str(n)}"
        if command:
            assert program("plan", output, *words)[0] == 0
        code, _, stderr = program(*command, output, *words)
        (line,) = (line for line in stderr.splitlines() if line.startswith("error:"))
        assert code == 1 and "gone is not a CTranslate2 Whisper directory" in line and "Traceback" not in stderr


def test_unknown_or_mistyped_option_is_named_before_any_work(calls, tmp_path, program):
    for argument, name in (("turns.max_second=3", "max_second"), ("conversation.max_turns=many", "max_turns")):
        code, _, stderr = program(f"input={calls}", f"output={tmp_path / 'out'}", argument)
        assert code == 2 and name in stderr and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["lang=english"],
            "lang=english: not a language code of the speech recognizer; set lang=en, or transcribe=none",
        ),
        (["lang=en-US"], "lang=en-US: not a language code of the speech recognizer; set lang=en, or transcribe=none"),
        (["lang=DE"], "lang=DE: not a language code of the speech recognizer; set lang=de, or transcribe=none"),
        (["lang=klingon"], "lang=klingon: not a language code of the speech recognizer; set one of af, am, ar, "),
        (
            ["+sources={a: {input: x, lang: en}, b: {input: y, lang: pt_BR}}"],
            "sources.b.lang=pt_BR: not a language code of the speech recognizer; set sources.b.lang=pt, or",
        ),
        (
            ["lang=null", "transcribe.model=bundled"],
            "lang=null: transcribe.model=bundled knows only English and detects no language; set lang=en, ",
        ),
        (
            ["lang=de", "transcribe.model=bundled"],
            "lang=de: transcribe.model=bundled knows only English; set another model, or transcribe=none",
        ),
        (["lang=de", "transcribe.model=small.en"], "lang=de: transcribe.model=small.en knows only English"),
        (
            ["lang=de", "transcribe=none", "score.cer_model=bundled"],
            "lang=de: score.cer_model=bundled knows only English, so no text would be compared; set another model",
        ),
    ],
)
def test_language_that_the_recognizer_does_not_know_is_refused_before_planning(
    options, message, calls, tmp_path, program
):
    source = [] if options[0].startswith("+sources") else [f"input={calls}"]
    for command in ("all", "plan"):
        code, stdout, stderr = program(command, *source, f"output={tmp_path / 'out'}", *SMALL, *options)
        assert code == 2 and stderr.startswith(f"error: {message}") and stderr.count("\n") == 1 and not stdout
        assert not (tmp_path / "out.work").exists()


def test_any_language_can_be_given_for_texts_and_known_ones_for_recognition(calls, tmp_path, program):
    work = f"output={tmp_path / 'out'}"
    assert program("plan", f"input={calls}", work, *SMALL, "lang=gsw", "transcribe=none")[0] == 0
    for lang in ("de", "yue", "null"):
        assert program("plan", f"input={calls}", f"output={tmp_path / lang}", *SMALL, f"lang={lang}")[0] == 0


def test_verify_exits_1_for_a_broken_dataset(calls, config, tmp_path, program):
    prepare(config(calls))
    assert program("verify", f"output={tmp_path / 'out'}")[:2] == (0, f"OK: no problems found in {tmp_path / 'out'}\n")
    file = tmp_path / "out" / "codec.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    code, _, stderr = program("verify", f"output={tmp_path / 'out'}")
    assert code == 1 and f"{file}: content differs" in stderr


@pytest.mark.slow
def test_module_runs_as_a_program(calls, tmp_path):
    command = [sys.executable, "-m", "data_prep", f"input={calls}", f"output={tmp_path / 'out'}"]
    command += ["codec=spectral", "codec.num_codebooks=5", "codec.codebook_size=23", "strict=off"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: " in done.stdout and "16 turns in 4 conversations" in done.stdout
    assert len(ShardedDataset(tmp_path / "out")) == 5


@pytest.mark.slow
def test_step_by_step_is_the_same_as_all_at_once(calls, tmp_path, program):
    """And `status` says how far it is, without the codec; where there is no terminal, progress is plain lines."""
    common = [f"input={calls}", *SMALL]
    code, stdout, _ = program("plan", f"output={tmp_path / 'steps'}", *common)
    assert code == 0 and "5 recordings" in stdout and "in 1 units" in stdout
    code, _, stderr = program("pack", f"output={tmp_path / 'steps'}", *common)
    assert code == 2 and "not fitted yet" in stderr
    code, _, stderr = program("run", f"output={tmp_path / 'steps'}", *common)
    assert code == 0 and "\nRunning stages" in f"\n{stderr}" and "\r" not in stderr
    codec = tmp_path / "steps.work" / "codec.safetensors"
    codec.rename(tmp_path / "elsewhere")
    code, stdout, _ = program("status", f"output={tmp_path / 'steps'}", *common)
    assert code == 0 and stdout.startswith("1 of 1 units done, 0 started; 100.0%")
    code, stdout, _ = program("status", f"output={tmp_path / 'steps'}")  # the default codec is not on this machine
    assert code == 0 and stdout.startswith("1 of 1 units done") and "options were others" in stdout
    code, stdout, _ = program("retry", f"output={tmp_path / 'steps'}")
    assert (code, stdout) == (0, "0 recordings re-queued for the next run\n")
    (tmp_path / "elsewhere").rename(codec)
    code, _, stderr = program("pack", f"output={tmp_path / 'steps'}", *common, "turns.merge_gap_seconds=0.7")
    assert code == 2 and "1 of 1 units are not done with these options" in stderr
    for command in ("pack", "report", "verify"):
        assert program(command, f"output={tmp_path / 'steps'}", *common)[0] == 0, command
    assert program(f"output={tmp_path / 'once'}", *common)[0] == 0
    assert comparable(tmp_path / "steps") == comparable(tmp_path / "once")
    once, steps = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("once", "steps"))
    assert once == steps


def test_strict_limits_change_without_encoding_again(calls, tmp_path, program):
    common = [f"input={calls}", f"output={tmp_path / 'out'}", *SMALL]
    assert program(*common)[0] == 0
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out.work").rglob("*.parquet")}
    assert program("pack", *common, "strict.min_seconds=1.5", "overwrite=true")[0] == 2  # nothing is that long
    assert program("pack", *common, "conversation.max_seconds=2.1", "overwrite=true")[0] == 0
    assert len(ShardedDataset(tmp_path / "out")) == 10
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "out.work").rglob("*.parquet")}
