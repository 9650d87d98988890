"""Freed memory on the CPU: it stays with the process by default and leaves it on request."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, torch
from csm.training.heap import return_freed_memory
if sys.argv[1] == "return":
    return_freed_memory()
def resident():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
torch.ones(500_000)  # glibc takes what is as large as something freed from its heap from then on
before = resident()
tensors = [torch.ones(500_000) for _ in range(200)]  # 2 MB each
kept = tensors[::10]
del tensors
print(resident() - before)
"""


def growth(mode: str) -> float:
    """MiB that a process holds on to beyond what it needs, after 400 MB were allocated and 40 MB kept."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return float(result.stdout) - 20 * 2e6 / 2**20


def test_freed_memory_is_returned_on_request():
    assert growth("keep") > 100  # otherwise the option would be pointless
    assert abs(growth("return")) < 10
