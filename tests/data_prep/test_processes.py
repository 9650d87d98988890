from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.execution.processes import ordered_map
from tests.conftest import ROOT


def squared_or_raised(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number**2


def test_results_keep_their_order_and_errors_arrive():
    for workers in (1, 2):
        assert list(ordered_map(squared_or_raised, range(5), workers, 0)) == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError, match="five"):
            list(ordered_map(squared_or_raised, range(40), workers, 0))


def write_pid_and_wait(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(120)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "from data_prep.execution.processes import ordered_map\n"
        "from tests.data_prep.test_processes import write_pid_and_wait\n"
        f"list(ordered_map(write_pid_and_wait, [{str(tmp_path)!r}] * 2, 2, 0))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = [int(file.name) for file in tmp_path.iterdir()]
    process.kill()
    process.wait()
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
