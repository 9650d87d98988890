"""Tables of scaling.md: what `csm plan` says of a million hours, and how far from that the measured runs are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from csm.compose import TRAIN
from csm.config import LoraConfig, PlanConfig
from csm.model.flops import GPUS, Gpu
from csm.planning.device import FRAME_RATE, GIB
from csm.planning.estimate import Plan, make_plan
from csm.planning.request import read_request
from csm.planning.state import Parameters
from docs.tables import MODELS, config_of, markdown

HOURS = 1_000_000
PASSES = 5  # Sesame's
GPU_NUMBERS = (64, 256, 1024)
ROWS = 8  # of a step on each GPU, in one microbatch
MFU = 0.4
STRATEGIES = {"csm_1b": "ddp", "csm_3b": "fsdp", "csm_8b": "fsdp"}
EXCHANGED = 8
"""Bytes a parameter that a GPU receives in a step of one microbatch. ddp: fp32 gradients, summed (4) and spread (4);
fsdp: bf16 weights before the forward and the backward pass (2 + 2), fp32 gradients (4)."""

RUNS = Path(__file__).parent.parent / "experiments" / "curves" / "runs"
DESK_RUNS = ("desk", "desk_seed2")
DESK_HOURS = 3.75  # of split `train` (experiments/corpus.md)
SETTLED = 4e6  # positions after which the seeds are compared


@cache
def plan_of(model: str, gpus: int) -> Plan:
    config, options = read_request(
        [
            *(f"model={model}", f"gpus={gpus}", "gpu=h100", f"strategy={STRATEGIES[model]}", f"hours={HOURS}"),
            *(f"data.global_batch_size={ROWS * gpus}", f"data.micro_batch_size={ROWS}", f"mfu={MFU}"),
        ]
    )
    return make_plan(config, options)


def gpu_of(key: str) -> Gpu:
    return next(gpu for gpu in GPUS if gpu.key == key)


def positions(hours: float) -> float:
    """Of frames, and of text at the tokens a second that `csm plan` assumes."""
    return hours * 3600 * (FRAME_RATE + PlanConfig().text_tokens_per_second)


def gpu_hours(model: str, gpu: str) -> float:
    """Of one pass."""
    hours = plan_of(model, GPU_NUMBERS[0]).gpu_hours
    assert hours
    return hours * gpu_of("h100").peak_flops / gpu_of(gpu).peak_flops


def data() -> str:
    """A million hours, counted."""
    codebooks, seconds = config_of(MODELS[0]).num_codebooks, HOURS * 3600
    tokens = PlanConfig().text_tokens_per_second
    rows = [
        ["frames", f"{seconds * FRAME_RATE / 1e9:.1f} billion"],
        ["codes", f"{seconds * FRAME_RATE * codebooks / 1e12:.2f} trillion"],
        [f"text tokens, {tokens:g} a second", f"{seconds * tokens / 1e9:.1f} billion"],
        ["positions of the backbone", f"{positions(HOURS) / 1e9:.1f} billion"],
        ["shards: int16 codes with their texts", f"{plan_of(MODELS[0], GPU_NUMBERS[0]).shards_storage / 1e12:.1f} TB"],
    ]
    return markdown(["a million hours", "one pass"], rows)


def work() -> str:
    """FLOPs and GPU hours of a million hours."""
    rows = []
    for model in MODELS:
        plan = plan_of(model, GPU_NUMBERS[0])
        hours = gpu_hours(model, "h100")
        flops = plan.flops_per_step / plan.positions_per_step * positions(HOURS)
        rows.append(
            [
                *(f"`{model}`", f"{plan.parameters / 1e6:,.0f}", f"{positions(HOURS) / plan.parameters:.0f}"),
                *(f"{flops:.1e}", f"{hours:,.0f}", f"{hours * PASSES:,.0f}", f"{plan.checkpoint_storage / 1e9:.0f}"),
            ]
        )
    head = [
        *("model", "million parameters", "positions a parameter, one pass", "FLOPs, one pass"),
        *("H100 hours, one pass", f"H100 hours, {PASSES} passes", "a training checkpoint, GB"),
    ]
    return markdown(head, rows)


def memory() -> str:
    """Peak of a device, with the least recomputation that fits."""
    rows = []
    for model in MODELS:
        for gpus in GPU_NUMBERS:
            cells = [f"`{model}`, {STRATEGIES[model]}", f"{gpus:,}"]
            for gpu in ("h100", "h200"):
                available = gpu_of(gpu).memory_gib
                totals = {level: plan.total / GIB for level, plan in plan_of(model, gpus).memory.items()}
                fitting = next(level for level, total in totals.items() if total <= available)
                cells += [fitting, f"{totals[fitting]:.1f} of {available:.1f}"]
            rows.append(cells)
    head = ["model, strategy", "GPUs", "recomputed, H100", "GiB, H100", "recomputed, H200", "GiB, H200"]
    return markdown(head, rows)


def time() -> str:
    """Steps and days of a million hours."""
    rows = []
    for model in MODELS:
        for gpus in GPU_NUMBERS:
            plan = plan_of(model, gpus)
            assert plan.positions_per_second and plan.step_seconds and plan.days
            exchanged = EXCHANGED * plan.parameters / plan.step_seconds
            rows.append(
                [
                    *(f"`{model}`", f"{gpus:,}", f"{plan.positions_per_step / 1e6:.1f}", f"{plan.steps:,}"),
                    *(f"{plan.step_seconds:.2f}", f"{plan.positions_per_second / 1e6:.2f}", f"{exchanged / 1e9:.0f}"),
                    *(f"{plan.days * 24:.2g}", f"{plan.days * PASSES:.2g}"),
                    f"{plan.days * PASSES * MFU / 0.5:.2g} to {plan.days * PASSES * MFU / 0.3:.2g}",
                ]
            )
    head = [
        *("model", "GPUs", "million positions a step", "steps of a pass", "s a step", "million positions/s"),
        *("GB/s to exchange", "hours, one pass", f"days, {PASSES} passes", f"days, {PASSES} passes, at 50 to 30 %"),
    ]
    return markdown(head, rows)


def processors() -> str:
    """GPU hours on others, at the same share of their peaks."""
    rows = []
    for key in ("a100", "h100", "h200", "b200"):
        gpu = gpu_of(key)
        hours = [f"{gpu_hours(model, key) * PASSES:,.0f}" for model in MODELS]
        rows.append([f"`{key}`", f"{gpu.peak_flops / 1e12:,.0f}", f"{gpu.memory_gib:.0f}", *hours])
    return markdown(["GPU", "peak, TFLOP/s", "GiB", *(f"`{model}`, GPU hours" for model in MODELS)], rows)


@cache
def desk_points(run: str) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads((RUNS / f"{run}.json").read_text(encoding="utf-8"))["points"]
    return points


def differences(loss: str) -> list[float]:
    """Between the seeds, at the same positions."""
    first, second = (desk_points(run) for run in DESK_RUNS)
    return [abs(a[loss] - b[loss]) for a, b in zip(first, second, strict=True)]


def curves() -> str:
    """Held-out losses of two seeds at the same positions."""
    losses = ("val/loss_c0", "val/loss_c1_7")
    runs = [desk_points(run) for run in DESK_RUNS]
    rows = []
    for i, point in enumerate(runs[0]):
        cells = [f"{point['positions'] / 1e6:.1f} M"]
        for loss in losses:
            cells += [*(f"{run[i][loss]:.2f}" for run in runs), f"{differences(loss)[i]:.2f}"]
        rows.append(cells)
    late = [i for i, point in enumerate(runs[0]) if point["positions"] > SETTLED]
    last = [f"largest after {SETTLED / 1e6:.0f} M"]
    for loss in losses:
        last += ["", "", f"{max(differences(loss)[i] for i in late):.2f}"]
    head = ["positions"]
    for name in ("c0", "c1-7"):
        head += [f"{name}, first seed", f"{name}, second seed", "apart"]
    return markdown(head, [*rows, last])


def distance() -> str:
    """From the desk's recipe to the projected runs."""
    desk = TRAIN.options(TRAIN.compose(["experiment=proving_desk", "data.path=none"])).model
    read = desk_points(DESK_RUNS[0])[-1]["positions"]
    counts = [Parameters.of(desk, LoraConfig()).count, *(plan_of(model, GPU_NUMBERS[0]).parameters for model in MODELS)]
    seen = [read, *(positions(HOURS) for _ in MODELS)]
    heard = [read / FRAME_RATE / 3600, *(HOURS for _ in MODELS)]
    rows = [
        ["million parameters", *(f"{count / 1e6:,.1f}" for count in counts)],
        ["million positions", *(f"{number / 1e6:,.0f}" for number in seen)],
        ["positions a parameter", *(f"{number / count:.1f}" for number, count in zip(seen, counts, strict=True))],
        ["hours of different speech", f"{DESK_HOURS}", *(f"{HOURS:,}" for _ in MODELS)],
        ["hours read", f"at most {heard[0]:.0f}", *(f"{hours:,}" for hours in heard[1:])],
        ["parameters, times the desk's", "1", *(f"{count / counts[0]:,.0f}" for count in counts[1:])],
        ["positions, times the desk's", "1", *(f"{number / read:,.0f}" for number in seen[1:])],
    ]
    return markdown(["", "`proving_desk`", *(f"`{model}`, one pass" for model in MODELS)], rows)


TABLES = {
    "scaling data": data,
    "scaling work": work,
    "scaling memory": memory,
    "scaling time": time,
    "scaling processors": processors,
    "scaling curves": curves,
    "scaling distance": distance,
}
