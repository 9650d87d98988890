"""A session of benchmarks/gpu_first_hour.py: programs in processes of their own, their logs, what has passed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csm.config import TrainConfig
from csm.model.flops import Gpu, Work, find_gpu, training_flops
from csm.planning.device import GIB
from csm.planning.estimate import make_plan
from csm.planning.request import read_request

ROOT = Path(__file__).resolve().parent.parent
CSM_1B = ["model=csm_1b", "model.text_vocab_size=128256"]
"""With the built-in tokenizer's data and Llama 3's vocabulary: the size of the real thing."""
DATA = ["data=demo", "data.path=runs/gpu_first_hour_demo", "codec=spectral", "tokenizer=bytes"]
"""The bundled recordings with 32 codebooks of 256; prepared by the first run that uses them."""
SMALL_DATA = [*DATA, "data.path=runs/gpu_first_hour_demo_cpu", "codec.num_codebooks=5", "codec.codebook_size=23"]
SMALL = ["model.backbone={layers: 2, dim: 48, heads: 6, kv_heads: 3, ffn_dim: 72}"]
SMALL += ["model.decoder={layers: 1, dim: 32, heads: 4, kv_heads: 2, ffn_dim: 56}", "data.max_seq_len=128"]
ROWS = 8
"""Rows of a microbatch where they fit."""


class Surprise(Exception):
    """Something else was seen than was expected."""


@dataclass(frozen=True)
class Step:
    """A measured step of the model: median seconds, peak GiB, and MFU where the GPU's peak is known."""

    rows: int
    ratio: int
    positions_per_second: float
    seconds: float
    peak_gib: float
    mfu: float | None

    @property
    def text(self) -> str:
        mfu = "" if self.mfu is None else f", {self.mfu:.1%} MFU"
        return (
            f"{self.rows} rows at 1/{self.ratio}: {1000 * self.seconds:.0f} ms, {self.positions_per_second:,.0f} "
            f"positions/s{mfu}, {self.peak_gib:.1f} GiB"
        )


def final(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The last record of training metrics."""
    return [record for record in records if "train/loss" in record][-1]


def within(expected: list[dict[str, Any]], seen: list[dict[str, Any]], tolerance: float) -> str:
    """Compares losses at equal steps; returns the largest relative difference, or raises Surprise."""
    worst = 0.0
    for name in ("train/loss", "val/loss"):
        wanted = {record["step"]: record[name] for record in expected if name in record}
        found = {record["step"]: record[name] for record in seen if name in record}
        if not wanted.keys() & found.keys() and name == "train/loss":
            raise Surprise(f"steps {sorted(wanted)} and {sorted(found)}: none in common")
        for number in sorted(wanted.keys() & found.keys()):
            if found[number] is None:
                raise Surprise(f"{name} of step {number} is not finite")
            difference = abs(found[number] / wanted[number] - 1)
            if difference > tolerance:
                raise Surprise(f"{name} of step {number}: {found[number]:.4f}, and {wanted[number]:.4f} was expected")
            worst = max(worst, difference)
    return f"losses within {worst:.2%}"


class Session:
    """device: "cuda", or "cpu" for the same checks with tiny models. out: folder of logs, results and tables.

    Raises ValueError if there is no such device, or if it is too small for the model.
    """

    def __init__(self, device: str, out: Path) -> None:
        import torch  # for what is asked of the device; programs run in processes of their own

        self.device, self.out, self.cuda = device, out.resolve(), device == "cuda"
        if self.cuda and not torch.cuda.is_available():
            raise ValueError("no CUDA device is visible; --device cpu runs the same checks with tiny models")
        self.trainer = ["trainer=gpu"] if self.cuda else ["trainer=cpu", "trainer.precision=bf16-mixed"]
        self.size, self.positions = ("csm_1b", 2048) if self.cuda else ("csm_tiny", 128)
        self.large = CSM_1B if self.cuda else SMALL
        self.data = [*(DATA if self.cuda else SMALL_DATA), f"data.num_workers={2 if self.cuda else 0}"]
        self.tiny = ["model=csm_tiny", "data.max_seq_len=256"] if self.cuda else SMALL
        self.gpu: Gpu | None = find_gpu(torch.cuda.get_device_name()) if self.cuda else None
        self.memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB if self.cuda else float("inf")
        self.versions: dict[str, Any] = {}
        self.state: dict[str, Any] = {"checks": [], "steps": []}

    def start(self) -> None:
        """Reads what earlier calls have found."""
        self.out.mkdir(parents=True, exist_ok=True)
        if self._results.is_file():
            self.state = json.loads(self._results.read_text())

    @property
    def _results(self) -> Path:
        return self.out / "results.json"

    @property
    def passed(self) -> set[str]:
        return {check["name"] for check in self.state["checks"]}

    def record(self, part: int, name: str, expected: str, seen: str, seconds: float) -> None:
        entry = {"part": part, "name": name, "expected": expected, "seen": seen, "seconds": seconds}
        self.state["checks"].append(entry)
        self.state["versions"] = self.versions or self.state.get("versions", {})
        self._results.write_text(json.dumps(self.state, indent=2))

    # ------------------------------------------------------------------------------------------------- programs

    def run(self, name: str, *words: str, environment: dict[str, str] | None = None) -> str:
        """Output of `python words`; it is in the log `name` too. Raises Surprise if the program fails."""
        log = self.out / f"{name}.log"
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        log.write_text(f"python {' '.join(words)}\n{done.stdout}", encoding="utf-8")
        if done.returncode:
            lines = [line for line in done.stdout.strip().splitlines() if line.strip()]
            raise Surprise(f"exit code {done.returncode} of {name}: {lines[-1] if lines else 'no output'} ({log})")
        return done.stdout

    def train_log(self, name: str, *words: str, environment: dict[str, str] | None = None, fresh: bool = True) -> str:
        """Output of train.py with `run_dir` below `out`; fresh: not a continued run."""
        folder = self.out / name
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        own = [f"run_dir={folder}", "ckpt_path=last", "logger=jsonl"]
        return self.run(f"train_{name}", "train.py", *words, *own, environment=environment)

    def train(self, name: str, *words: str, fresh: bool = True) -> list[dict[str, Any]]:
        """Records of metrics.jsonl of such a run."""
        self.train_log(name, *words, fresh=fresh)
        return self.metrics(name)

    def metrics(self, name: str, keep: bool = True) -> list[dict[str, Any]]:
        """keep: whether the run's checkpoints and export are still needed; large ones fill a disk."""
        lines = (self.out / name / "metrics.jsonl").read_text().splitlines()
        if not keep:
            for folder in ("checkpoints", "export"):
                shutil.rmtree(self.out / name / folder, ignore_errors=True)
        return [json.loads(line) for line in lines]

    def probe(self, name: str, **options: Any) -> dict[str, Any]:
        """Result of a function of benchmarks/gpu_probes.py in a process of its own."""
        task = json.dumps({"device": self.device, **options})
        output = self.run(f"probe_{name}", "-m", "benchmarks.gpu_probes", name, task)
        return json.loads(output.strip().splitlines()[-1])

    # ------------------------------------------------------------------------------------------ the large model

    @cached_property
    def rows(self) -> int:
        """Rows of a microbatch: ROWS, or as many as fit without activation checkpointing."""
        if not self.cuda:
            return 2
        fitting = [rows for rows in (ROWS, 4, 2, 1) if self.fits(rows)]
        if not fitting:
            raise Surprise(f"{self.memory_gib:.0f} GiB are too little for {self.size}; parts 2 and 3 need 40")
        return fitting[0]

    def fits(self, rows: int) -> bool:
        words = self._step_words(rows, 16)
        return not self.cuda or self._planned(words)[1] <= self.memory_gib

    def _step_words(self, rows: int, ratio: int) -> list[str]:
        words = [*(CSM_1B if self.cuda else ["model=csm_tiny"]), f"data.max_seq_len={self.positions}"]
        words += [f"data.global_batch_size={rows}", f"data.micro_batch_size={rows}"]
        return [
            *words,
            f"loss.decoder_frame_ratio={ratio}",
            "text_tokens_per_second=2.3",
        ]  # as benchmarks/train_step.py

    def _planned(self, words: list[str]) -> tuple[float, float]:
        """GiB of tensors and in all, by `csm plan`."""
        config, options = read_request([*words, f"gpu={self.gpu.key if self.gpu else 'h100'}"])
        memory = make_plan(config, options).memory[config.trainer.activation_checkpointing.value]
        return memory.peak.total / GIB, memory.total / GIB

    def step(self, rows: int, ratio: int, *overrides: str, system: str = "ours") -> Step:
        """Measures a step with benchmarks/train_step.py, as often as it is asked for only once."""
        words = [*(CSM_1B[1:] if self.cuda else []), *overrides]
        setting = {"size": self.size, "device": self.device, "rows": rows, "positions": self.positions, "ratio": ratio}
        setting["overrides"] = words
        key = json.dumps([system, setting])
        found = next((one for one in self.state["steps"] if one["key"] == key), None)
        if found is None:
            name = f"step_{len(self.state['steps'])}"
            task = json.dumps({"system": system, "setting": setting, "steps": 5 if self.cuda else 1})
            output = self.run(name, "benchmarks/train_step.py", "--task", task)
            measured = json.loads(output.strip().splitlines()[-1])
            found = {"key": key, "system": system, "overrides": list(overrides), **self._figures(rows, ratio, measured)}
            self.state["steps"].append(found)
        names = ("rows", "ratio", "positions_per_second", "seconds", "peak_gib", "mfu")
        step = Step(**{name: found[name] for name in names})
        if self.cuda and system == "ours":
            planned, _ = self._planned([*self._step_words(rows, ratio), *overrides])
            if abs(step.peak_gib / planned - 1) > 0.1:
                raise Surprise(f"{step.text}; {planned:.1f} GiB were planned")
        return step

    def _figures(self, rows: int, ratio: int, measured: dict[str, Any]) -> dict[str, Any]:
        seconds = sorted(measured["seconds"])[len(measured["seconds"]) // 2]
        config: TrainConfig = read_request(self._step_words(rows, ratio))[0]
        text = 0.156  # share of the positions, as in benchmarks/train_step.py
        positions = rows * self.positions
        frames = round(positions * ((1 - text) if ratio == 1 else 1 / ratio))
        work = Work(positions, rows * self.positions**2, round(positions * (1 - text)), frames)
        flops = training_flops(config.model, work).model
        return {
            "rows": rows,
            "ratio": ratio,
            "seconds": seconds,
            "positions_per_second": positions / seconds,
            "peak_gib": measured["peak"],
            "mfu": flops / seconds / self.gpu.peak_flops if self.gpu else None,
        }

    def check_memory(self, record: dict[str, Any], words: list[str], *more: str) -> str:
        """Peak memory of a training run beside the plan of its options. Raises Surprise if they differ by over 10 %."""
        if not self.cuda:
            return f"{record['memory/resident_gib']:.2f} GiB resident"
        seen = record["memory/allocated_gib"]
        options = [word for word in [*words, *more] if not word.startswith("data.path=")]
        planned, _ = self._planned(options)
        text = f"{seen:.1f} GiB allocated, {planned:.1f} planned, {record['memory/reserved_gib']:.1f} reserved"
        if abs(seen / planned - 1) > 0.1:
            raise Surprise(text)
        return text

    # ---------------------------------------------------------------------------------------------------- tables

    def write_tables(self) -> Path:
        """benchmarks_gpu.md: hardware and versions, every check, every measured step."""
        versions = self.state.get("versions", {})
        lines = [f"# {versions.get('device', self.device)}", ""]
        lines.append(", ".join(f"{name} {value}" for name, value in versions.items() if name not in ("device", "bf16")))
        lines += ["", "`benchmarks/gpu_first_hour.sh 1 2 3`, medians of five steps.", ""]
        lines += ["| check | expected | seen | seconds |", "|---|---|---|---|"]
        for one in self.state["checks"]:
            lines.append(f"| {one['name']} | {one['expected']} | {one['seen']} | {one['seconds']:.0f} |")
        if self.state["steps"]:
            title = f"A step of {self.size}, rows of {self.positions} positions:"
            lines += ["", title, "", "| system | rows | decoder sees | ms | positions/s | MFU | peak GiB |"]
            lines.append("|---|---|---|---|---|---|---|")
        for one in self.state["steps"]:
            mfu = "-" if one["mfu"] is None else f"{one['mfu']:.1%}"
            system = " ".join([one["system"], *(f"`{word}`" for word in one["overrides"])])
            lines.append(
                f"| {system} | {one['rows']} | 1/{one['ratio']} | {1000 * one['seconds']:.1f} "
                f"| {one['positions_per_second']:,.0f} | {mfu} | {one['peak_gib']:.2f} |"
            )
        path = self.out / "benchmarks_gpu.md"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path
