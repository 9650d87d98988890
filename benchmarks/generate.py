"""Generation of codes: our engine in its modes, transformers' CsmForConditionalGeneration, and Sesame's own code.

    python benchmarks/generate.py                            82M parameters, fp32, CPU
    python benchmarks/generate.py --size csm_1b --device cuda      bf16, and listeners who come at random
    python benchmarks/generate.py --sesame DIR               with Sesame's models.py in DIR (it needs torchtune)

Random weights of the same shapes, a prompt of 16 text tokens, 40 frames and 16 text tokens, and draws at temperature
0.9 of the 50 likeliest codes. No codec takes part. Each system runs in processes of its own (so that its peak memory is
its own), the systems taking turns. Prints medians and ratios to transformers. Record results in docs/benchmarks.md.

first:      ms from the request to its first frame, prompt included, alone
frame:      ms for each later frame, alone
audio s/s:  seconds of audio generated in a second, by the number of requests spoken at the same time; Sesame's code
            speaks them one after another
--rates:    our engine with Mimi (random weights) and listeners who come at random, see benchmarks/listeners.py
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
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.listeners import loaded, warm_up, with_random_codec
from csm.config import CSMConfig, TransformerConfig
from csm.frames import Frames, TurnTokens, conversation_frames
from csm.inference.engine import Engine, Request
from csm.inference.sampling import Sampling
from csm.inference.weights import DecodingWeights
from csm.model.csm import CSM

TRANSFORMERS, SESAME = "transformers", "sesame"
FRAME_RATE = 12.5
TEXT, SPOKEN = 16, 40
SIZES = {
    "csm_tiny": CSMConfig(
        TransformerConfig(4, 256, 4, 2, 1024), TransformerConfig(2, 128, 2, 1, 512), 258, 256, num_codebooks=32
    ),
    "82m": CSMConfig(
        TransformerConfig(6, 512, 8, 4, 2048), TransformerConfig(4, 256, 4, 2, 1024), 8192, 2048, num_codebooks=32
    ),
    "csm_1b": CSMConfig(
        TransformerConfig(16, 2048, 32, 8, 8192),
        TransformerConfig(4, 1024, 8, 2, 8192),
        128_256,
        2048,
        num_codebooks=32,
    ),
}

Speak = Callable[[int, int], None]
"""Speaks a number of frames of each of a number of requests, from their prompts on."""


def prompt(config: CSMConfig, number: int) -> Frames:
    generator = torch.Generator().manual_seed(number)
    codes = torch.randint(1, config.codebook_size, (config.num_codebooks, SPOKEN), generator=generator)
    texts = torch.randint(1, config.text_vocab_size, (2, TEXT), generator=generator).tolist()
    turns = [TurnTokens(texts[0], codes), TurnTokens(texts[1], None)]
    return conversation_frames(turns, config.num_codebooks)


def model(config: CSMConfig, device: torch.device) -> CSM:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        return CSM(config).to(dtype).eval()


def ours(config: CSMConfig, device: torch.device, mode: Any, most: int) -> Speak:
    engine = Engine(DecodingWeights(model(config, device), share=True), most, mode=mode)

    def speak(requests: int, frames: int) -> None:
        batch = []
        for number in range(requests):
            start = prompt(config, number)
            batch.append(Request(start.tokens, start.mask, frames, Sampling(0.9, 50, seed=number)))
        engine.run(*[engine.submit(request) for request in batch])
        assert all(len(request.frames) == frames for request in batch), "random weights do not end turns"

    return speak


def theirs(config: CSMConfig, device: torch.device) -> Speak:
    from transformers import CsmConfig, CsmForConditionalGeneration

    from csm.formats import hf

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    codec = {"model_type": "mimi", "num_hidden_layers": 1, "num_quantizers": config.num_codebooks}
    content = hf.write_config(config, codec, 1, 2, 3, 4, str(dtype).removeprefix("torch."))
    torch.manual_seed(0)
    with device:
        other = CsmForConditionalGeneration(CsmConfig(**content)).to(dtype).eval()
    del other.codec_model  # as in ours, no codec takes part
    settings = hf.write_generation_config(config, 1, 2)
    del settings["max_new_tokens"]

    def speak(requests: int, frames: int) -> None:
        starts = [prompt(config, number) for number in range(requests)]
        tokens = torch.stack([start.tokens for start in starts]).to(device)
        is_text = torch.stack([start.mask[:, -1:] for start in starts]).to(device)
        audio = other.backbone_model.embed_tokens(tokens[..., :-1])
        embedded = torch.where(is_text, other.embed_text_tokens(tokens[..., -1]), audio)
        codes = other.generate(inputs_embeds=embedded, max_new_tokens=frames, **settings)
        assert codes.shape[:2] == (requests, frames), codes.shape

    return speak


def sesame(config: CSMConfig, device: torch.device, folder: str) -> Speak:
    """Sesame's model from its models.py, frame by frame as its generator.py does it. Raises ImportError."""
    if not Path(folder, "models.py").is_file():
        raise ImportError(f"{folder} has no models.py; give a copy of Sesame's repository")
    sys.path.insert(0, folder)
    import models
    from torchtune.models.llama3_2 import llama3_2

    def stack(shape: TransformerConfig) -> torch.nn.Module:
        return llama3_2(
            vocab_size=128,  # its embeddings are taken out again
            num_layers=shape.layers,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            embed_dim=shape.dim,
            max_seq_len=config.max_seq_len,
            intermediate_dim=shape.ffn_dim,
            norm_eps=config.norm_eps,
            rope_base=500_000,
            scale_factor=32,
        )

    models.FLAVORS.update(ours_backbone=lambda: stack(config.backbone), ours_decoder=lambda: stack(config.decoder))
    vocabularies = (config.text_vocab_size, config.audio_vocab_size, config.num_codebooks)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    other = models.Model(models.ModelArgs("ours_backbone", "ours_decoder", *vocabularies)).to(device, dtype).eval()
    torch.nn.init.normal_(other.audio_head, std=0.02)  # is uninitialized memory otherwise
    other.setup_caches(1)

    def speak(requests: int, frames: int) -> None:
        for number in range(requests):
            start = prompt(config, number)
            tokens, mask = start.tokens[None].to(device), start.mask[None].to(device)
            positions = torch.arange(tokens.shape[1], device=device)[None]
            other.reset_caches()
            for _ in range(frames):
                frame = other.generate_frame(tokens, mask, positions, 0.9, 50)  # [1, K]
                tokens = torch.nn.functional.pad(frame, (0, 1))[:, None]
                mask = torch.ones_like(tokens, dtype=torch.bool)
                mask[..., -1] = False
                positions = positions[:, -1:] + 1

    return speak


def speaker(system: str, options: argparse.Namespace) -> Speak:
    config, device = SIZES[options.size], options.device
    if system == TRANSFORMERS:
        return theirs(config, device)
    if system == SESAME:
        return sesame(config, device, options.sesame)
    return ours(config, device, system, max(options.batches))


def measure(system: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the first frame and of each later one, audio seconds a second, peak memory in GiB."""
    device, batches, frames = options.device, options.batches, options.frames
    try:
        speak = speaker(system, options)
    except ImportError as error:
        return {"absent": str(error)}
    clock = time.process_time if options.cpu_time else time.perf_counter

    def seconds(requests: int, count: int) -> float:
        synchronize(device)
        start = clock()
        speak(requests, count)
        synchronize(device)
        return clock() - start

    with torch.inference_mode():
        seconds(1, 2)  # compiles, and fills caches
        first, whole = seconds(1, 1), seconds(1, frames)
        rates = {}
        for batch in batches:
            seconds(batch, 2)
            rates[batch] = batch * frames / FRAME_RATE / seconds(batch, frames)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1024**3
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux -> GiB
    result = {"first": first, "frame": (whole - first) / (frames - 1), "rates": rates, "peak": peak}
    if options.rates and system not in (TRANSFORMERS, SESAME):
        del speak  # and its engine
        generator = with_random_codec(model(SIZES[options.size], device), max(batches), system)
        warm_up(generator, frames)
        result["listeners"] = [loaded(generator, frames, rate, options.seconds) for rate in options.rates]
    return result


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_in_turns(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in options.systems}
    for _ in range(options.rounds):
        for system in options.systems:
            command = [sys.executable, __file__, *sys.argv[1:], "--task", system]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            results[system].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def report(results: dict[str, list[dict[str, Any]]], batches: list[int]) -> None:
    base = results.get(TRANSFORMERS)
    columns = "".join(f"{f'B={batch}':>8}" for batch in batches)
    print(f"{'system':>13}{'first':>8}{'frame':>8}{'speed':>8}{'peak':>7}   audio s/s{columns}{'largest/1':>11}")
    for system, rounds in results.items():
        if "absent" in rounds[0]:
            print(f"{system:>13} absent: {rounds[0]['absent']}")
            continue
        first, frame = (median(result[name] for result in rounds) for name in ("first", "frame"))
        rates = [median(result["rates"][str(batch)] for result in rounds) for batch in batches]
        speed = f"{median(result['frame'] for result in base) / frame:.2f}x" if base else "-"
        peak = max(result["peak"] for result in rounds)
        print(
            f"{system:>13}{1000 * first:8.0f}{1000 * frame:8.1f}{speed:>8}{peak:7.2f}            "
            + "".join(f"{rate:8.2f}" for rate in rates)
            + f"{max(rates) / rates[0]:10.1f}x"
        )
    for system, rounds in results.items():
        for line in rounds[-1].get("listeners", []):
            print(f"{system:>13} with Mimi, {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="82m", choices=SIZES)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--systems", nargs="+", help="default: all that the device and --sesame allow")
    parser.add_argument("--sesame", metavar="DIR", help="a copy of Sesame's repository")
    parser.add_argument("--rates", type=float, nargs="*", help="of listeners a second; default on CUDA: 1 2 4")
    parser.add_argument("--seconds", type=float, default=20.0, help="in which listeners come")
    parser.add_argument("--cpu-time", action="store_true", help="count only the process's own time: for a busy machine")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    on_cuda = options.device.type == "cuda"
    if options.rates is None:
        options.rates = [1.0, 2.0, 4.0] if on_cuda else []
    if options.systems is None:
        options.systems = [TRANSFORMERS, *([SESAME] if options.sesame else []), "eager", "compiled"]
        options.systems += ["cuda_graph"] if on_cuda else []
    torch.set_num_threads(options.threads)
    if options.task:
        print(json.dumps(measure(options.task, options)))
        return
    hardware = torch.cuda.get_device_name() if on_cuda else platform.machine()
    print(
        f"{hardware}, {options.threads} CPU threads, torch {torch.__version__}, {options.size}, {options.frames} frames"
    )
    if not options.sesame:
        print("without Sesame's generator: give a copy of its repository with --sesame DIR")
    report(measure_in_turns(options), options.batches)


if __name__ == "__main__":
    main()
