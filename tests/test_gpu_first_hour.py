"""benchmarks/gpu_first_hour.sh: stops at a surprise, goes on after what has passed, and runs through on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_first_hour import CHECKS, Check, run_parts
from benchmarks.gpu_session import Session, Surprise, within
from tests.conftest import ROOT


def test_it_stops_at_a_surprise_and_continues_after_what_has_passed(tmp_path, capsys):
    ran = []

    def fine(session: Session) -> str:
        ran.append("fine")
        return session.run("print", "-c", "print('41 GiB')").strip()

    def exits(session: Session) -> str:
        return session.run("exits", "-c", "raise SystemExit('the kernel died')")

    def last(session: Session) -> str:
        ran.append("last")
        return "seen"

    checks = [Check(1, "fine", "40 GiB", 1, fine), Check(1, "exits", "exit code 0", 1, exits)]
    assert run_parts(Session("cpu", tmp_path), [1], 60, checks) == 1
    told = capsys.readouterr().err
    assert "SURPRISE  exits" in told and "expected  exit code 0" in told and "the kernel died" in told
    assert "the kernel died" in (tmp_path / "exits.log").read_text()
    mended = [checks[0], Check(1, "exits", "exit code 0", 1, last), Check(2, "of another part", "", 1, exits)]
    assert run_parts(Session("cpu", tmp_path), [1], 60, mended) == 0
    assert ran == ["fine", "last"]
    tables = (tmp_path / "benchmarks_gpu.md").read_text()
    assert "| fine | 40 GiB | 41 GiB |" in tables and "| exits | exit code 0 | seen |" in tables


def test_losses_are_compared_at_equal_steps():
    wanted = [{"step": 10, "train/loss": 4.0}, {"step": 20, "train/loss": 2.0}, {"step": 20, "val/loss": 3.0}]
    assert within(wanted, [*wanted[1:], {"step": 30, "train/loss": 9.0}], 0.01) == "losses within 0.00%"
    with pytest.raises(Surprise, match=r"train/loss of step 20: 2\.1000, and 2\.0000 was expected"):
        within(wanted, [{"step": 20, "train/loss": 2.1}], 0.01)
    with pytest.raises(Surprise, match="not finite"):
        within(wanted, [{"step": 20, "train/loss": None}], 0.01)
    with pytest.raises(Surprise, match="none in common"):
        within(wanted, [{"step": 5, "train/loss": 4.0}], 0.01)


def test_without_a_gpu_it_says_so():
    done = first_hour("--device", "cuda", "1", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and done.stderr == (
        "error: no CUDA device is visible; --device cpu runs the same checks with tiny models\n"
    )


@pytest.mark.slow
def test_a_part_runs_on_a_cpu_and_leaves_its_tables(tmp_path: Path):
    """The second part: the others are many training runs of half a minute each."""
    done = first_hour("--device", "cpu", "--out", str(tmp_path), "2")
    assert done.returncode == 0, done.stdout + done.stderr
    tables = (tmp_path / "benchmarks_gpu.md").read_text()
    assert all(
        f"| {check.name} | {check.expected} | " in tables for check in CHECKS if check.part == 2 and not check.gpu_only
    )
    assert "| ours | 2 | 1/16 |" in tables and "| transformers | 2 | 1/16 |" in tables


def first_hour(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu_first_hour.sh"), *words],
        env={**os.environ, "PYTHON": sys.executable, **(environment or {})},
        capture_output=True,
        text=True,
    )
