"""A plan as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from typing import Any

from rich.console import Console
from rich.table import Table

from csm.config import PlanConfig
from csm.planning.device import GIB, MemoryPlan
from csm.planning.estimate import Plan

MEMORY_ROWS = {
    "weights": "weights",
    "casts": "bf16 copies of weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "backbone_activations": "activations, backbone",
    "decoder_activations": "activations, depth decoder",
    "logits": "logits and their gradients",
    "block_gradients": "gradients of activations",
    "buffers": "gathered weights, buckets",
}


def plan_json(plan: Plan, options: PlanConfig, remedy: str | None) -> str:
    """All figures, in bytes, seconds and FLOPs; with each memory plan its total and whether it fits."""
    record = asdict(plan)
    for name, memory in plan.memory.items():
        record["memory"][name] |= {"total": memory.total, "fits": memory.fits}
    return json.dumps({"options": asdict(options), **record, "remedy": remedy}, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    assert isinstance(value, Enum)
    return value.value


def verdict(plan: Plan, remedy: str | None) -> str:
    """One line: whether it fits, and what to change if not."""
    if plan.gpu == "cpu":
        return "Compare the total with the machine's memory."
    fitting = [name for name, memory in plan.memory.items() if memory.fits]
    if not fitting:
        change = f"it would fit with {remedy}" if remedy else "take more or larger GPUs, or a smaller model"
        return f"Does not fit into the memory of {plan.gpu}, even with trainer.activation_checkpointing=full: {change}."
    memory = plan.memory[fitting[0]]
    assert memory.available is not None  # of a GPU
    spare = (memory.available - memory.total) / GIB
    return (
        f"Fits into {plan.gpu} with trainer.activation_checkpointing={fitting[0]}, {spare:.1f} GiB to spare; there the "
        f"largest data.micro_batch_size is {memory.largest_micro_batch_size}."
    )


def print_plan(plan: Plan, options: PlanConfig, remedy: str | None, console: Console) -> None:
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False)
    trained = "" if plan.trained_parameters == plan.parameters else f" ({_count(plan.trained_parameters)} trained)"
    sharing = plan.strategy.tensor_parallel_size
    devices = f"{plan.gpus} x {plan.gpu}" + (f" on {plan.nodes} nodes" if plan.nodes > 1 else "")
    console.print(
        f"{_count(plan.parameters)} parameters{trained}, {devices}, strategy {plan.strategy.name.value}"
        f"{' with CPU offload' if plan.strategy.cpu_offload else ''}, "
        f"{plan.precision.value}, step of {plan.global_batch_size} rows = "
        f"{plan.microbatches} x {plan.micro_batch_size} on each "
        f"{'device' if sharing == 1 else f'group of {sharing} tensor-parallel devices'}",
        highlight=False,
    )
    console.print(_memory_table(plan))
    console.print(verdict(plan, remedy), highlight=False)
    console.print(_work_table(plan, options))


def _memory_table(plan: Plan) -> Table:
    table = Table(title="Peak memory per device, GiB, by trainer.activation_checkpointing", title_justify="left")
    table.add_column("")
    for name in plan.memory:
        table.add_column(name, justify="right")
    memories = list(plan.memory.values())

    def row(label: str, values: list[float], style: str | None = None) -> None:
        table.add_row(label, *(f"{value / GIB:.2f}" for value in values), style=style)

    for part, label in MEMORY_ROWS.items():
        row(label, [memory.peak.parts()[part] for memory in memories])
    row("held by the allocator", [memory.allocator for memory in memories])
    if plan.gpu != "cpu":
        row("CUDA context, NCCL", [memory.context for memory in memories])
    table.add_section()
    row("total", [memory.total for memory in memories], "bold")
    table.add_row("of", *(_available(memory) for memory in memories))
    table.add_row("reached in", *(memory.peak.moment for memory in memories))
    if plan.gpu != "cpu":
        table.add_row("largest microbatch", *(str(memory.largest_micro_batch_size or "-") for memory in memories))
    if plan.host_memory_per_node:
        row("host memory per node", [plan.host_memory_per_node] * len(memories))
    return table


def _available(memory: MemoryPlan) -> str:
    return "?" if memory.available is None else f"{memory.available / GIB:.1f}"


def _work_table(plan: Plan, options: PlanConfig) -> Table:
    table = Table(show_header=False, title="Work, time, storage", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("positions per step", f"{plan.positions_per_step:,}")
    table.add_row(
        "audio frames / in the depth decoder",
        f"{plan.audio_frames_per_step:,.0f} / {plan.decoder_frames_per_step:,.0f}",
    )
    table.add_row("model FLOPs per step", f"{plan.flops_per_step:.3e}")
    computed = plan.gpus * plan.device_flops_per_step
    if plan.strategy.tensor_parallel_size > 1:
        table.add_row("with parts that all tensor-parallel devices compute", f"{computed:.3e}")
    table.add_row("with trainer.activation_checkpointing=full", f"{plan.hardware_flops_per_step:.3e}")
    if plan.step_seconds is not None and plan.positions_per_second is not None:
        mfu = options.mfu * plan.flops_per_step / computed
        table.add_row(f"step time at {mfu:.0%} MFU", f"{plan.step_seconds:.3f} s")
        table.add_row(
            "positions/s, per GPU", f"{plan.positions_per_second:,.0f}, {plan.positions_per_second / plan.gpus:,.0f}"
        )
    table.add_section()
    table.add_row("audio", f"{options.hours:,.0f} h x {options.epochs:g}")
    table.add_row("steps", f"{plan.steps:,}")
    if plan.days is not None:
        table.add_row("days", f"{plan.days:,.2f}")
        table.add_row("GPU-hours", f"{plan.gpu_hours:,.1f}")
    table.add_section()
    table.add_row("shards", f"{plan.shards_storage / 1e9:,.2f} GB (codes {plan.codes_storage / 1e9:,.2f})")
    table.add_row("a training checkpoint", f"{plan.checkpoint_storage / 1e9:,.2f} GB")
    table.add_row("an export, fp32", f"{plan.export_storage / 1e9:,.2f} GB")
    return table


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
