"""One training step: ours and transformers' CsmForConditionalGeneration, in one run, on one batch.

    python benchmarks/train_step.py                       82M parameters, 4 x 256 positions, fp32, CPU
    python benchmarks/train_step.py --size csm_1b --device cuda --rows 8 --positions 2048      bf16 autocast over fp32
    python benchmarks/train_step.py --baseline ../before       and the `ours` of another checkout of the project

Each system runs in processes of its own (so that its peak memory is its own), the systems taking turns. Ours has the
defaults of a training run on that device (configs/train/trainer/); the rest of the command line are other options, such
as trainer.activation_checkpointing=none loss.decoder_chunk=72. Prints medians over all steps, and ratios to
transformers. MFU is by csm/model/flops.py against the GPU's dense bf16 peak; HFU is the same here, since no matrix
product is computed twice. How long training waits for data is in the metrics of real runs (docs/metrics.md).
Record results in docs/benchmarks.md with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csm.compose import TRAIN
from csm.config import CSMConfig, TrainConfig
from csm.data.packing import RowBatch, num_slots, pack_row, stack_rows
from csm.frames import TurnTokens, conversation_frames
from csm.kernels import cpu, cuda
from csm.model.backward import LocalEngine, backward_in_chunks
from csm.model.csm import CSM
from csm.model.flops import Work, find_gpu, training_flops
from csm.parallel.gradients import clip_gradients, gradient_norms
from csm.parallel.plan import attention_mask, parallelize
from csm.training.optim import trainable_parts

TRANSFORMERS, OURS, BASELINE = "transformers", "ours", "baseline"
FRAME_RATE = 12.5
EMPTY = 0.004  # share of a row that stays empty, as after packing
SIZES = {
    "82m": [
        "model.backbone={layers: 6, dim: 512, heads: 8, kv_heads: 4, ffn_dim: 2048}",
        "model.decoder={layers: 4, dim: 256, heads: 4, kv_heads: 2, ffn_dim: 1024}",
        "tokenizer.vocab_size=8192",
    ]
}


@dataclass(frozen=True)
class Setting:
    """A measured training step; `ratio` 16 lets the depth decoder see 1/16 of the positions."""

    size: str
    device: str
    rows: int
    positions: int
    ratio: int
    overrides: list[str]

    @property
    def text(self) -> int:
        return round(0.156 * self.positions)

    @property
    def frames(self) -> int:
        """Frames of each row without the end-of-speech frame."""
        return round((1 - EMPTY) * self.positions) - self.text - 1

    def config(self) -> TrainConfig:
        size = SIZES.get(self.size, [f"model={self.size}"])
        trainer = "gpu" if self.device == "cuda" else "cpu"
        return TRAIN.options(TRAIN.compose(["data.path=none", f"trainer={trainer}", *size, *self.overrides]))


def our_step(setting: Setting) -> Callable[[], None]:
    config, device = setting.config(), torch.device(setting.device)
    torch.manual_seed(0)
    with device:
        model = CSM(config.model)
    if device.type == "cuda":
        cuda.install(model)
    elif not config.trainer.compile:
        cpu.install(model)
    options = config.trainer
    parallelize(model, None, options.activation_checkpointing, options.compile, bf16=False, cpu_offload=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine = AutocastEngine(model, device)
    batch = our_batch(setting, config.model).to(device)
    names = ("tokens", "mask", "positions", "targets", "slots", "slot_weights")
    inputs = {name: getattr(batch, name) for name in names}
    parts = trainable_parts(model)

    def step() -> None:
        inputs["attention_mask"] = attention_mask(batch, config)
        backward_in_chunks(engine, inputs, config.loss, batch.targets.sum())
        clip_gradients(parts, gradient_norms(parts)["total"], 1.0, optimizer)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_batch(setting: Setting, config: CSMConfig) -> RowBatch:
    rng, generator, rows = np.random.default_rng(0), torch.Generator().manual_seed(0), []
    slots = num_slots(setting.positions, setting.ratio)
    for _ in range(setting.rows):
        codes = torch.randint(1, config.codebook_size, (config.num_codebooks, setting.frames), generator=generator)
        text = torch.randint(1, config.text_vocab_size, (setting.text,), generator=generator).tolist()
        frames = conversation_frames([TurnTokens(text, codes)], config.num_codebooks)
        rows.append(pack_row([frames], setting.positions, config.num_codebooks, slots, rng))
    return stack_rows(rows)


class AutocastEngine(LocalEngine):
    """Forward passes under the autocast of the device."""

    def __init__(self, model: CSM, device: torch.device) -> None:
        super().__init__(model)
        self.device = device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with precision(self.device):
            return super().__call__(*args, **kwargs)


def precision(device: torch.device) -> torch.autocast | nullcontext:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def transformers_step(setting: Setting) -> Callable[[], None]:
    import transformers  # not for our own processes: it has a memory of its own

    config, device = setting.config().model, torch.device(setting.device)
    batch = our_batch(setting, config)
    torch.manual_seed(0)
    backbone, decoder, codebooks = config.backbone, config.decoder, config.num_codebooks
    with device:
        model = transformers.CsmForConditionalGeneration(
            transformers.CsmConfig(
                num_codebooks=codebooks,
                vocab_size=config.audio_vocab_size,
                text_vocab_size=config.text_vocab_size,
                hidden_size=backbone.dim,
                intermediate_size=backbone.ffn_dim,
                num_hidden_layers=backbone.layers,
                num_attention_heads=backbone.heads,
                num_key_value_heads=backbone.kv_heads,
                codebook_pad_token_id=2050,
                depth_decoder_config={
                    "num_codebooks": codebooks,
                    "backbone_hidden_size": backbone.dim,
                    "vocab_size": config.audio_vocab_size,
                    "hidden_size": decoder.dim,
                    "intermediate_size": decoder.ffn_dim,
                    "num_hidden_layers": decoder.layers,
                    "num_attention_heads": decoder.heads,
                    "num_key_value_heads": decoder.kv_heads,
                    "max_position_embeddings": codebooks + 1,
                },
                codec_config={"model_type": "mimi", "num_hidden_layers": 1, "num_quantizers": codebooks},
            )
        )
    model.codec_model = None  # codes are given: no codec in the step, nor in the memory measured
    codes, text = batch.tokens[..., :-1].to(device), batch.tokens[..., -1].to(device)
    is_frame = batch.mask[..., :1].to(device)
    labels = torch.where(batch.targets[..., None], batch.tokens[..., :-1], -100)
    # Frames whose codebooks 1.. are all -100 never enter the depth decoder: the same frames as in our slots.
    chosen = torch.zeros_like(batch.targets).scatter_(1, batch.slots, True) & batch.targets
    labels[..., 1:][~chosen] = -100
    labels = labels.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with precision(device):
            frames, words = model.backbone_model.embed_tokens(codes), model.embed_text_tokens(text)
            loss = model(inputs_embeds=torch.where(is_frame, frames, words), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(system: str, setting: Setting, steps: int) -> dict[str, list[float] | float]:
    """Seconds of each step, and peak memory (GiB): resident set of the process, or what torch allocated on the GPU."""
    step = transformers_step(setting) if system == TRANSFORMERS else our_step(setting)
    synchronize = torch.cuda.synchronize if setting.device == "cuda" else lambda: None
    for _ in range(3 if setting.device == "cuda" else 2):  # compilation, optimizer state, first-time memory
        step()
    seconds = []
    for _ in range(steps):
        synchronize()
        start = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - start)
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1024**3
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux -> GiB
    return {"seconds": seconds, "peak": peak}


def measure_in_turns(setting: Setting, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """(seconds of the median step, peak GiB) of each system, in fresh processes that alternate `rounds` times."""
    scripts = {OURS: Path(__file__), TRANSFORMERS: Path(__file__)}
    if options.baseline is not None:
        scripts = {BASELINE: options.baseline.resolve() / "benchmarks" / "train_step.py", **scripts}
    seconds: dict[str, list[float]] = {system: [] for system in scripts}
    peaks = dict.fromkeys(seconds, 0.0)
    for _ in range(options.rounds):
        for system, script in scripts.items():
            name = OURS if system == BASELINE else system
            task = json.dumps({"system": name, "setting": vars(setting), "steps": options.steps})
            command = [sys.executable, str(script), "--threads", str(options.threads), "--task", task]
            environment = {**os.environ, "PYTHONPATH": str(script.resolve().parents[1])}
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            result = json.loads(output.splitlines()[-1])
            seconds[system] += result["seconds"]
            peaks[system] = max(peaks[system], result["peak"])
    return {system: (float(np.median(seconds[system])), peaks[system]) for system in seconds}


def report(setting: Setting, results: dict[str, tuple[float, float]]) -> None:
    config = setting.config().model
    batch = our_batch(setting, config)
    filled = int((batch.documents >= 0).sum())
    work = Work(
        positions=filled,
        squared_lengths=setting.rows * (filled // setting.rows) ** 2,
        c0_positions=int(batch.targets.sum()),
        frames=int((batch.slot_weights > 0).sum()),
    )
    flops = training_flops(config, work).model
    gpu = find_gpu(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    base_seconds, base_peak = results[TRANSFORMERS]
    for system, (seconds, peak) in results.items():
        audio = work.c0_positions / FRAME_RATE / seconds  # hours of audio in an hour
        mfu = f"{100 * flops / seconds / gpu.peak_flops:.1f}" if gpu else "-"
        print(
            f"{'1/' + str(setting.ratio):>5} {system:>13} {setting.rows * setting.positions / seconds:12.0f}"
            f"{work.c0_positions / seconds:10.0f}{audio:12.0f}{flops / seconds / 1e12:9.3f}{mfu:>7}{peak:10.2f}"
            f"{base_seconds / seconds:8.2f}x{peak / base_peak:8.2f}x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="82m", help="82m, or a configuration of configs/train/model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ratios", type=int, nargs="+", default=[16, 1])
    parser.add_argument(
        "--baseline", type=Path, help="another checkout, measured in turns with this one; it must know all key=value"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of train.py, for ours")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.task:
        task = json.loads(options.task)
        print(json.dumps(measure(task["system"], Setting(**task["setting"]), task["steps"])))
        return
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"{hardware}, {options.threads} CPU threads, torch {torch.__version__}, {options.size}, ", end="")
    print(f"{options.rows} x {options.positions} positions")
    print(
        f"{'depth':>5} {'system':>13} {'positions/s':>12}{'frames/s':>10}{'audio h/h':>12}{'TFLOP/s':>9}{'MFU %':>7}"
        f"{'peak GiB':>10}{'speed':>9}{'memory':>9}"
    )
    for ratio in options.ratios:
        setting = Setting(options.size, options.device, options.rows, options.positions, ratio, options.overrides)
        report(setting, measure_in_turns(setting, options))


if __name__ == "__main__":
    main()
