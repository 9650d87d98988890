"""Measurements of benchmarks/gpu_first_hour.py that need a process of their own.

    python -m benchmarks.gpu_probes NAME TASK

TASK is JSON with the arguments. The last line printed is the result, as JSON.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from csm.provenance import package_versions


def versions(device: str) -> dict[str, Any]:
    """Imports what training needs, and names it."""
    import csm.training.build  # noqa: F401 # imports everything that training does

    cuda = device == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "bf16": not cuda or torch.cuda.is_bf16_supported(including_emulation=False),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
    names = ["triton", "lightning", "transformers", "deepspeed", "numpy", "moshi", "pytest"]
    return found | package_versions(*names)


def attention(device: str) -> dict[str, Any]:
    """Forward and backward of one layer's attention in bf16, several documents to a row, in three ways."""
    cuda = device == "cuda"
    batch, heads, kv_heads, length, width = (8, 32, 8, 2048, 64) if cuda else (2, 4, 2, 256, 16)
    generator = torch.Generator().manual_seed(0)

    def draw(number: int) -> Tensor:
        values = torch.randn(batch, number, length, width, generator=generator, dtype=torch.float32)
        return values.to(device, torch.bfloat16).requires_grad_(cuda)

    q, k, v = draw(heads), draw(kv_heads), draw(kv_heads)
    documents = (torch.arange(length, device=device) * 3 // length).expand(batch, length)
    same = documents[:, :, None] == documents[:, None, :]
    dense = (same & torch.ones(length, length, dtype=torch.bool, device=device).tril())[:, None]

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (documents[row, query] == documents[row, key]) & (query >= key)

    blocks = create_block_mask(sees, batch, None, length, length, device=device)
    flex = torch.compile(flex_attention) if cuda else flex_attention
    groups = heads // kv_heads
    ways: dict[str, Callable[[], Tensor]] = {
        "dense mask, GQA": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True),
        "dense mask, repeated heads": lambda: F.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), attn_mask=dense
        ),
        f"flex{', compiled' if cuda else ''}": lambda: flex(q, k, v, block_mask=blocks, enable_gqa=True),
    }
    results = {name: way().detach().float() for name, way in ways.items()}
    first = next(iter(results.values()))
    difference = max(float((result - first).abs().max()) for result in results.values())

    def once(way: Callable[[], Tensor]) -> None:
        result = way()
        if cuda:  # flex attention has no backward pass on CPUs
            result.sum().backward()

    return {
        "difference": difference,
        "milliseconds": {name: _milliseconds(once, way, cuda) for name, way in ways.items()},
    }


def _milliseconds(once: Callable[[Callable[[], Tensor]], None], way: Callable[[], Tensor], cuda: bool) -> float:
    repetitions = 10 if cuda else 2
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(3 if cuda else 1):
        once(way)
    synchronize()
    start = time.perf_counter()
    for _ in range(repetitions):
        once(way)
    synchronize()
    return 1000 * (time.perf_counter() - start) / repetitions


def profile(device: str, rows: int, positions: int, size: str) -> dict[str, Any]:
    """torch.profiler over two steps of benchmarks/train_step.py: the share of the time that the GPU works, the
    costliest operations, and the whole table."""
    from benchmarks.train_step import Setting, our_step

    cuda = device == "cuda"
    step = our_step(Setting(size, device, rows, positions, 16, ["model.text_vocab_size=128256"] if cuda else []))
    for _ in range(3):
        step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        step()
        step()
        synchronize()
        seconds = time.perf_counter() - start
    averages = profiler.key_averages()
    on_gpu = [event for event in averages if event.self_device_time_total > 0]
    on_gpu.sort(key=lambda event: -event.self_device_time_total)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    # Under the profiler launches are slower: this is a lower bound.
    busy = sum(event.self_device_time_total for event in on_gpu) / 1e6 / seconds
    return {
        "busy": busy,
        "costliest": [f"{event.key[:60]} {event.self_device_time_total / 2000:.1f} ms" for event in on_gpu[:5]],
        "table": averages.table(sort_by=order, row_limit=40, max_name_column_width=80),
    }


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"versions": versions, "attention": attention, "profile": profile}


if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
