"""Provenance of numbers and weights: versions of code and packages, and hardware, as plain values."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PROJECT = Path(__file__).resolve().parents[1]


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions by distribution name; a package that is not installed maps to "not installed"."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def code_version() -> dict[str, str]:
    """Commit of the project's checkout and a hash of uncommitted changes, if there are any.

    An installed package is no checkout (a repository that merely surrounds it does not count): then only the
    package version is known.
    """
    result = package_versions("csm-train")
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _PROJECT:
        return result | {"commit": "none: not a git checkout"}
    result["commit"] = _git("rev-parse", "HEAD") or "none: no commit yet"
    if changes := _git("diff", "HEAD"):
        result["uncommitted_changes_sha256"] = hashlib.sha256(changes.encode()).hexdigest()
    if untracked := _git("ls-files", "--others", "--exclude-standard"):
        result["untracked_files"] = str(len(untracked.splitlines()))
    return result


def hardware(device: str) -> dict[str, Any]:
    """Processor, threads and, for a CUDA device, the GPU."""
    found: dict[str, Any] = {
        "processor": _processor_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": device,
    }
    if device.startswith("cuda"):
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's folder; None where git or the repository is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_PROJECT), *arguments],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
