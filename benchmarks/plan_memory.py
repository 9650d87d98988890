"""The memory estimate of `csm plan` against the measured peak of real training steps on a CPU.

    python benchmarks/plan_memory.py [--steps 3]

Every case runs in fresh processes, fp32, AdamW, gradient clipping. Measured is the resident set's high-water mark
(VmHWM) of the steps, less what the process held before the model was built, after steps of a toy model had loaded all
libraries: so tensors, and what the allocator keeps. Twice: with every block of 64 KiB and more mapped on its own
and returned when freed ("tensors": what is in use), and with the allocator's defaults, as training runs ("process").
Record results in docs/benchmarks.md with hardware and versions.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from csm.config import CSMConfig, TrainConfig, TransformerConfig
from csm.data.packing import RowBatch, num_slots, pack_row, stack_rows
from csm.frames import TurnTokens, conversation_frames
from csm.kernels import cpu
from csm.model.backward import LocalEngine, backward_in_chunks
from csm.model.csm import CSM
from csm.planning.device import FRAME_RATE, MemoryPlan
from csm.planning.estimate import make_plan
from csm.planning.request import read_request
from csm.training.optim import build_optimizer

ROOT = Path(__file__).resolve().parent.parent
TINY = ["experiment=quickstart", "gpu=cpu", "trainer.precision=32-true"]
M82 = [
    "trainer=cpu",
    "gpu=cpu",
    "trainer.precision=32-true",
    "model.backbone={layers: 6, dim: 512, heads: 8, kv_heads: 4, ffn_dim: 2048}",
    "model.decoder={layers: 4, dim: 256, heads: 4, kv_heads: 2, ffn_dim: 1024}",
    "tokenizer.vocab_size=8192",
    "data.global_batch_size=4",
    "data.micro_batch_size=4",
    "data.max_seq_len=256",
    "text_tokens_per_second=2.3",  # 40 text positions to a row
]
CASES = {
    "csm_tiny, 2 x 512, 1/8": TINY,
    "csm_tiny, 2 x 512, 1/1": [*TINY, "loss.decoder_frame_ratio=1"],
    "82M, 4 x 256, 1/16": M82,
    "82M, 4 x 256, 1/1": [*M82, "loss.decoder_frame_ratio=1"],
    "82M, 1/16, selective": [*M82, "trainer.activation_checkpointing=selective"],
    "82M, 1/16, full": [*M82, "trainer.activation_checkpointing=full"],
}
ALLOCATORS = {"tensors": {"MALLOC_MMAP_THRESHOLD_": "65536"}, "process": {}}


def estimate(words: list[str]) -> MemoryPlan:
    config, options = read_request(words)
    return make_plan(config, options).memory[config.trainer.activation_checkpointing.value]


def random_rows(config: TrainConfig, text_tokens_per_second: float) -> RowBatch:
    """One microbatch of full rows, one conversation each, with the share of text that the plan assumes."""
    model, data = config.model, config.data
    rng = np.random.default_rng(0)
    text = round(data.max_seq_len * text_tokens_per_second / (FRAME_RATE + text_tokens_per_second))
    slots = num_slots(data.max_seq_len, config.loss.decoder_frame_ratio)
    rows = []
    for _ in range(data.micro_batch_size):
        codes = torch.randint(1, model.codebook_size, (model.num_codebooks, data.max_seq_len - text - 1))
        turn = TurnTokens(torch.randint(1, model.text_vocab_size, (text,)).tolist(), codes)
        frames = conversation_frames([turn], model.num_codebooks)
        rows.append(pack_row([frames], data.max_seq_len, model.num_codebooks, slots, rng))
    return stack_rows(rows)


def training_step(config: TrainConfig, batch: RowBatch) -> Callable[[], None]:
    model = CSM(config.model)
    for block in (*model.backbone.layers, *model.decoder.layers):
        block.activation_checkpointing = config.trainer.activation_checkpointing
    cpu.install(model)
    optimizer, engine = build_optimizer(model, config.optim), LocalEngine(model)
    names = ("tokens", "mask", "positions", "targets", "slots", "slot_weights")
    inputs = {name: getattr(batch, name) for name in names}

    def step() -> None:
        inputs["attention_mask"] = batch.attention_mask()
        backward_in_chunks(engine, inputs, config.loss, float(batch.targets.sum()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory_of_this_process(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure(words: list[str], steps: int) -> int:
    """Bytes of this process's peak over the steps."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config, options = read_request(words)
    toy = CSMConfig(TransformerConfig(1, 32, 2, 1, 32), TransformerConfig(1, 32, 2, 1, 32), 8, 5, 32)
    toy_config = replace(config, model=toy, data=replace(config.data, max_seq_len=16))
    step = training_step(toy_config, random_rows(toy_config, options.text_tokens_per_second))
    step()
    step()
    del step
    gc.collect()
    batch = random_rows(config, options.text_tokens_per_second)
    before = memory_of_this_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    step = training_step(config, batch)
    for _ in range(steps):
        step()
    return memory_of_this_process("VmHWM") - before


def measure_in_a_process(words: list[str], steps: int, allocator: str) -> int:
    command = [sys.executable, __file__, "--steps", str(steps), "--one", json.dumps(words)]
    environment = {**os.environ, **ALLOCATORS[allocator], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(json.loads(options.one), options.steps))
        return
    print(f"{platform.machine()}, torch {torch.__version__}, fp32; MB = 10^6 bytes")
    print(f"{'case':24} {'':8} {'estimate MB':>12} {'measured MB':>12} {'difference':>11}")
    for name, words in CASES.items():
        plan = estimate(words)
        for allocator, estimated in (("tensors", plan.peak.total), ("process", plan.total)):
            measured = measure_in_a_process(words, options.steps, allocator)
            difference = estimated / measured - 1
            print(
                f"{name:24} {allocator:8} {estimated / 1e6:12.0f} {measured / 1e6:12.0f} {difference:+11.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
