"""One training step at the 82M benchmark size: ours beside transformers' CsmForConditionalGeneration, in one run.

    python benchmarks/train_step.py [--threads 2] [--steps 3] [--rounds 2] [--ratios 16 1]

Each system runs in processes of its own (so that its peak memory is its own), the two taking turns, on random rows of
4 x 256 positions, fp32, AdamW. Prints the median positions/s of all steps and the peak memory, and their ratios.
Record results in docs/benchmarks.md with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers

from csm.config import CSMConfig, LossConfig, TransformerConfig
from csm.data.packing import num_slots, pack_row, stack_rows
from csm.frames import TurnTokens, conversation_frames
from csm.model.csm import CSM

ROWS, POSITIONS, CODEBOOKS, TEXT, FRAMES = 4, 256, 32, 40, 215
CONFIG = CSMConfig(
    backbone=TransformerConfig(layers=6, dim=512, heads=8, kv_heads=4, ffn_dim=2048),
    decoder=TransformerConfig(layers=4, dim=256, heads=4, kv_heads=2, ffn_dim=1024),
    text_vocab_size=8192,
    codebook_size=2048,
    num_codebooks=CODEBOOKS,
)


def our_step(ratio: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = CSM(CONFIG)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(ROWS):
        codes = torch.randint(1, 2048, (CODEBOOKS, FRAMES))
        frames = conversation_frames([TurnTokens(torch.randint(1, 8192, (TEXT,)).tolist(), codes)], CODEBOOKS)
        rows.append(pack_row([frames], POSITIONS, CODEBOOKS, num_slots(POSITIONS, ratio), rng))
    batch = stack_rows(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        sums = model(
            batch.tokens,
            batch.mask,
            batch.positions,
            batch.targets,
            batch.slots,
            batch.slot_weights,
            batch.attention_mask(),
        )
        sums.loss(LossConfig(), sums.frames).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_step(ratio: int) -> Callable[[], None]:
    torch.manual_seed(0)
    backbone, decoder = CONFIG.backbone, CONFIG.decoder
    model = transformers.CsmForConditionalGeneration(
        transformers.CsmConfig(
            num_codebooks=CODEBOOKS,
            vocab_size=CONFIG.audio_vocab_size,
            text_vocab_size=CONFIG.text_vocab_size,
            hidden_size=backbone.dim,
            intermediate_size=backbone.ffn_dim,
            num_hidden_layers=backbone.layers,
            num_attention_heads=backbone.heads,
            num_key_value_heads=backbone.kv_heads,
            codebook_pad_token_id=2050,
            depth_decoder_config={
                "num_codebooks": CODEBOOKS,
                "backbone_hidden_size": backbone.dim,
                "vocab_size": CONFIG.audio_vocab_size,
                "hidden_size": decoder.dim,
                "intermediate_size": decoder.ffn_dim,
                "num_hidden_layers": decoder.layers,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "max_position_embeddings": CODEBOOKS + 1,
            },
            codec_config={"model_type": "mimi", "num_hidden_layers": 1, "num_quantizers": CODEBOOKS},
        )
    )
    model.codec_model = None  # codes are given: no codec in the step, nor in the memory measured
    text = torch.randint(1, 8192, (ROWS, TEXT))
    codes = torch.randint(1, 2048, (ROWS, FRAMES + 1, CODEBOOKS))
    labels = torch.full((ROWS, POSITIONS, CODEBOOKS), -100)
    labels[:, TEXT : TEXT + FRAMES + 1] = codes
    # Frames whose codebooks 1.. are all -100 never enter the depth decoder; it keeps 1/ratio of the positions.
    kept = torch.stack([torch.randperm(FRAMES + 1)[: POSITIONS // ratio] for _ in range(ROWS)]) + TEXT
    dropped = torch.ones(ROWS, POSITIONS, dtype=torch.bool)
    dropped.scatter_(1, kept, False)
    dropped &= labels[..., 0] != -100
    labels[..., 1:][dropped] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        text_states = model.embed_text_tokens(text)
        audio_states = model.backbone_model.embed_tokens(codes)
        padding = text_states.new_zeros(ROWS, POSITIONS - TEXT - FRAMES - 1, text_states.shape[-1])
        inputs = torch.cat((text_states, audio_states, padding), dim=1)
        model(inputs_embeds=inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(system: str, ratio: int, steps: int, threads: int) -> dict[str, list[float] | float]:
    """Seconds of each step and peak memory (GiB) of this process."""
    torch.set_num_threads(threads)
    step = {"ours": our_step, "transformers": transformers_step}[system](ratio)
    for _ in range(2):  # optimizer state, and memory the process gets for the first time
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux -> GiB
    return {"seconds": seconds, "peak": peak}


def measure_in_turns(ratio: int, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """(positions/s, peak GiB) of both systems, in fresh processes that alternate `options.rounds` times."""
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    peaks = dict.fromkeys(seconds, 0.0)
    for _ in range(options.rounds):
        for system in seconds:
            command = [sys.executable, __file__, "--one", system, str(ratio)]
            command += ["--steps", str(options.steps), "--threads", str(options.threads)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            seconds[system] += result["seconds"]
            peaks[system] = max(peaks[system], result["peak"])
    return {system: (ROWS * POSITIONS / float(np.median(seconds[system])), peaks[system]) for system in seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ratios", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "RATIO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        system, ratio = options.one
        print(json.dumps(measure(system, int(ratio), options.steps, options.threads)))
        return
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, fp32, {ROWS} x {POSITIONS} positions")
    print(f"{'decoder':>8} {'system':>13} {'positions/s':>12} {'peak GiB':>9}")
    for ratio in options.ratios:
        results = measure_in_turns(ratio, options)
        for system, (speed, peak) in results.items():
            print(f"{'1/' + str(ratio):>8} {system:>13} {speed:12.0f} {peak:9.2f}")
        speed, peak = (ours / theirs for ours, theirs in zip(*results.values(), strict=True))
        print(f"{'1/' + str(ratio):>8} {'ratio':>13} {speed:11.2f}x {peak:8.2f}x", flush=True)


if __name__ == "__main__":
    main()
