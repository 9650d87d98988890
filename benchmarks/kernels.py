"""Savings of each fused module of csm/kernels/cpu.py: training steps with all of them, and with all but one.

    python benchmarks/kernels.py [--steps 3] [--rounds 3]

The model and batch are those of benchmarks/train_step.py: 82M parameters, 4 x 256 positions, the depth decoder at 1/16
and at all positions. Short bf16 attention is measured under bf16 autocast, the only place where it differs; the others
in fp32. Each variant runs in fresh processes, the variants taking turns. Peak is the process's resident set, libraries
included. Gains are ratios of "without it" to "all": above 1, the kernel saves time or memory.
Record results in docs/benchmarks.md with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import train_step  # noqa: E402
from csm.kernels import cpu  # noqa: E402
from csm.model.csm import CSM  # noqa: E402
from csm.model.transformer import FeedForward, RMSNorm, apply_rope, attend  # noqa: E402

ALL = "all"


def keep_rope() -> None:
    cpu.CpuAttention.rotate = staticmethod(apply_rope)


def keep_attention() -> None:
    cpu.CpuAttention.attend = staticmethod(attend)


EXCLUDE: dict[str, Callable[[], object]] = {
    ALL: lambda: None,
    "RMSNorm": lambda: cpu._REPLACEMENTS.pop(RMSNorm),
    "Rope": keep_rope,
    "SwiGLU": lambda: cpu._REPLACEMENTS.pop(FeedForward),
    "FrameEmbeddings": lambda: cpu._REPLACEMENTS.pop(CSM),
}
EXCLUDE_BF16: dict[str, Callable[[], object]] = {ALL: lambda: None, "short attention": keep_attention}


def measure(without: str, ratio: int, bf16: bool, steps: int) -> dict[str, list[float] | float]:
    (EXCLUDE_BF16 if bf16 else EXCLUDE)[without]()
    train_step.precision = lambda device: torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    return train_step.measure(train_step.OURS, train_step.Setting("82m", "cpu", 4, 256, ratio, []), steps)


def measure_in_turns(ratio: int, bf16: bool, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """(seconds of the median step, peak GiB) of each variant."""
    variants = EXCLUDE_BF16 if bf16 else EXCLUDE
    seconds: dict[str, list[float]] = {without: [] for without in variants}
    peaks = dict.fromkeys(variants, 0.0)
    for _ in range(options.rounds):
        for without in variants:
            task = json.dumps({"without": without, "ratio": ratio, "bf16": bf16, "steps": options.steps})
            command = [sys.executable, __file__, "--threads", str(options.threads), "--task", task]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            result = json.loads(output.splitlines()[-1])
            seconds[without] += result["seconds"]
            peaks[without] = max(peaks[without], result["peak"])
    return {without: (float(np.median(seconds[without])), peaks[without]) for without in variants}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratios", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.task:
        print(json.dumps(measure(**json.loads(options.task))))
        return
    print(f"{platform.machine()}, {options.threads} CPU threads, torch {torch.__version__}, 82m, 4 x 256 positions")
    print(
        f"{'depth':>5} {'precision':>9} {'without':>16} {'s/step':>8}{'peak GiB':>10}"
        f"{'speed gain':>12}{'memory gain':>13}"
    )
    for ratio in options.ratios:
        for bf16 in (False, True):
            results = measure_in_turns(ratio, bf16, options)
            base_seconds, base_peak = results[ALL]
            for without, (seconds, peak) in results.items():
                name = "- (all)" if without == ALL else without
                print(
                    f"{'1/' + str(ratio):>5} {'bf16' if bf16 else 'fp32':>9} {name:>16} {seconds:8.2f}{peak:10.2f}"
                    f"{seconds / base_seconds:11.2f}x{peak / base_peak:12.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
