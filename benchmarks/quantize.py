"""Costs and savings of quantization: bytes, time of a frame, cross entropy, greedy codes, words and voice.

    python benchmarks/quantize.py --model runs/quickstart/export --data runs/demo-data
    python benchmarks/quantize.py --random csm_1b

The first compares every scheme, in the backbone, in the depth decoder and in both, with the model as it is: bytes of
the quantized layers and of all weights; cross entropy of each group of codebooks, teacher-forced, held out and trained
on; and for the prompts of `eval=quickstart`, spoken greedily, milliseconds of a frame, the first frame whose codes
differ, word errors of Whisper tiny.en and speaker cosine (where all codes are equal, so is the speech). int4 runs on
CUDA alone: elsewhere its rows are the values that it would have, computed in fp32, without bytes and times.
The second measures memory and time of a frame of random weights of a configuration (configs/train/model), in bf16 and
quantized, each in a process of its own.
Record results in docs/quantization.md with hardware and versions.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.compose import EVALUATE
from csm.config import EvalConfig
from csm.data.dataset import ShardedDataset
from csm.data.rows import sample_turns
from csm.evaluation.judging import add_words
from csm.evaluation.prompts import EvalPrompt, dataset_prompts, fit_context
from csm.evaluation.scores import score_system
from csm.evaluation.statistics import Estimate
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.utterances import System, Utterance
from csm.formats.layouts import Checkpoint
from csm.formats.open import open_checkpoint
from csm.formats.quantized import load_quantized
from csm.frames import TurnTokens, conversation_frames
from csm.inference.engine import Engine, Request
from csm.inference.generator import Generator
from csm.inference.sampling import Sampling
from csm.inference.weights import DecodingWeights
from csm.judges.speaker import cosine, load_embedder
from csm.judges.whisper import load_recognizer
from csm.model.csm import CSM
from csm.planning.request import read_request
from csm.quantization.schemes import INT4_GROUP, PARTS, Quantization, quantize_weight
from csm.quantization.tensors import as_parameter, leaves, plain_tensors, template, with_leaves
from csm.text import TextTokenizer

SCHEMES = ("int8", "int8-dynamic", "fp8", "int4")
SPLITS = (("backbone",), ("decoder",), PARTS)
GROUPS = {"c0": (0, 1), "c1-7": (1, 8), "c8-15": (8, 16), "c16-31": (16, 32)}
"""Groups of codebooks, first and one after the last."""
MB = 1e6
CLOCK = {"cpu": time.process_time, "cuda": time.perf_counter}
"""On CPUs, with one thread: processor time, which other work on the machine disturbs least."""


@dataclass
class Variant:
    """A model under test. quantization: None for the model as it is."""

    name: str
    generator: Generator
    quantization: Quantization | None
    real: bool  # int4 without CUDA: values only, no bytes and times


# ------------------------------------------------------------------------------------------------- variants


def int4_values(weight: Tensor) -> Tensor:
    """The values that scheme int4 gives a weight, in its own dtype."""
    from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq as hqq

    codes, scale, zero, _ = hqq(
        weight, 4, INT4_GROUP, compute_dtype=torch.float32, device=str(weight.device), raw_output=True
    )
    groups = codes.float().unflatten(1, (-1, INT4_GROUP))
    return ((groups - zero[..., None]) * scale[..., None]).flatten(1).to(weight.dtype)


def load_variant(checkpoint: Checkpoint, quantization: Quantization | None, device: str) -> Variant:
    name = "as it is" if quantization is None else f"{quantization.scheme} {'+'.join(quantization.parts)}"
    real = quantization is None or quantization.scheme != "int4" or device == "cuda"
    if quantization is None:
        model = checkpoint.load_model(device)
    elif real:
        dtype = torch.bfloat16 if quantization.scheme == "int4" else None
        model = load_quantized(checkpoint, quantization, device, dtype)
    else:
        model = checkpoint.load_model(device)
        for layer in quantization.layers(checkpoint.config):
            parameter = model.get_parameter(layer)
            parameter.data = int4_values(parameter.data)
    generator = Generator(
        model, checkpoint.read_codec(device), checkpoint.read_tokenizer(), slots=1, share_weights=True
    )
    return Variant(name, generator, quantization, real)


def nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def layer_bytes(model: CSM, quantization: Quantization) -> tuple[int, int]:
    """Bytes of the quantized layers: now, and in fp32."""
    layers = quantization.layers(model.config)
    now = sum(nbytes(list(leaves(model.get_parameter(name)).values())) for name in layers)
    return now, 4 * sum(rows * columns for rows, columns in layers.values())


# ------------------------------------------------------------------------------------------------- measures


@torch.inference_mode()
def cross_entropy(model: CSM, dataset: ShardedDataset, tokenizer: TextTokenizer, split: str) -> dict[str, float]:
    """Mean cross entropy of each group of codebooks, in nats, over all frames of a split."""
    device = model.codebook0_head.weight.device
    sums, frames = torch.zeros(model.config.num_codebooks, dtype=torch.float64), 0
    for number in dataset.select(split):
        turns = sample_turns(dataset.read(int(number)), tokenizer, model.config.max_seq_len)
        rows = conversation_frames(turns, model.config.num_codebooks)
        tokens, mask = rows.tokens.to(device), rows.mask.to(device)
        states = model.backbone_states(tokens[None], mask[None], torch.arange(len(tokens), device=device)[None])[0]
        at = mask[:, 0].nonzero().flatten()
        codes = tokens[at, :-1]  # [F, K]
        first = F.cross_entropy(model.codebook0_head(states[at - 1]).float(), codes[:, 0], reduction="sum")
        logits = model.decoder_logits(states[at - 1], codes[:, :-1]).float()  # [K-1, F, V]
        others = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:].T, reduction="none").sum(dim=1)
        sums += torch.cat([first[None], others]).double().cpu()
        frames += len(at)
    return {name: float(sums[start:end].mean()) / frames for name, (start, end) in GROUPS.items()}


def greedy_codes(variant: Variant, prompts: list[EvalPrompt], settings: EvalConfig) -> tuple[list[Tensor], float]:
    """Codes [K, T] of every prompt, and milliseconds of a frame, prompts included."""
    generator, codes = variant.generator, []
    clock = CLOCK[generator.codec.device.type]
    limit = generator.max_frames(1000 * settings.max_audio_seconds)
    seconds, frames = 0.0, 0
    for prompt in prompts:
        rows = generator.prompts.prompt(fit_context(prompt, generator, limit), prompt.text, prompt.speaker)
        started = clock()
        codes.append(generator.generate_codes(rows.tokens, rows.mask, limit, temperature=0))
        seconds += clock() - started
        frames += codes[-1].shape[1] + 1  # the one that ends the turn
    return codes, 1000 * seconds / frames


def spoken(generator: Generator, codes: Tensor) -> Tensor:
    """The audio `[num_samples]` of a turn's codes."""
    return generator.codec.decode(codes[None])[0, 0].float().cpu() if codes.shape[1] else torch.zeros(0)


def first_difference(a: Tensor, b: Tensor) -> int | None:
    """The first frame that differs, from 0; None if none does."""
    frames = min(a.shape[1], b.shape[1])
    different = (a[:, :frames] != b[:, :frames]).any(dim=0).nonzero().flatten()
    if len(different):
        return int(different[0])
    return frames if a.shape[1] != b.shape[1] else None


def compare(options: argparse.Namespace) -> None:
    device = options.device
    checkpoint, dataset = open_checkpoint(options.model), ShardedDataset(options.data)
    original = load_variant(checkpoint, None, device)
    entropies = cross_entropies(original, dataset)
    for split, values in entropies.items():
        print(
            f"cross entropy of {split} as it is: {', '.join(f'{name} {value:.3f}' for name, value in values.items())}"
        )
    speech = Speech(dataset, options, original) if options.prompts else None
    for scheme in options.schemes:
        for parts in SPLITS:
            variant = load_variant(checkpoint, Quantization(scheme, parts), device)
            report(variant, dataset, entropies)
            if speech:
                speech.report(variant)


def cross_entropies(variant: Variant, dataset: ShardedDataset) -> dict[str, dict[str, float]]:
    model, tokenizer = variant.generator.model, variant.generator.tokenizer
    return {split: cross_entropy(model, dataset, tokenizer, split) for split in ("val", "train")}


def report(variant: Variant, dataset: ShardedDataset, original: dict[str, dict[str, float]]) -> None:
    """Bytes and cross entropies."""
    assert variant.quantization
    print(f"\n{variant.name}")
    if variant.real:
        model = variant.generator.model
        now, whole = layer_bytes(model, variant.quantization)
        weights = nbytes(list(plain_tensors(model.state_dict()).values()))
        print(f"  layers {now / MB:.2f} MB, {now / whole:.3f} of fp32; all weights {weights / MB:.2f} MB")
    for split, values in cross_entropies(variant, dataset).items():
        changes = [f"{name} {value - original[split][name]:+.4f}" for name, value in values.items()]
        print(f"  cross entropy of {split} {', '.join(changes)}", flush=True)


class Speech:
    """Greedy speech of the quickstart's prompts, compared with that of the model as it is."""

    def __init__(self, dataset: ShardedDataset, options: argparse.Namespace, original: Variant) -> None:
        words = [f"checkpoint={options.model}", "eval=quickstart", f"eval.max_prompts={options.prompts}"]
        self.settings = EVALUATE.options(EVALUATE.compose(words)).eval
        codec = original.generator.codec
        self.prompts = dataset_prompts(dataset, self.settings, codec, options.model).prompts
        self.recognizer = load_recognizer(self.settings.asr, None, "en", "cpu")
        self.embedder = load_embedder(self.settings.speaker_model_kind, None, "cpu")
        self.codes, self.ms = greedy_codes(original, self.prompts, self.settings)
        print(f"as it is: {self.ms:.1f} ms a frame, {self.judged(original, self.codes)}", flush=True)

    def report(self, variant: Variant) -> None:
        codes, ms = greedy_codes(variant, self.prompts, self.settings)
        if variant.real:
            print(f"  {ms:.1f} ms a frame, {ms / self.ms:.2f} of as it is")
        found = [first_difference(a, b) for a, b in zip(self.codes, codes, strict=True)]
        later = sorted(frame for frame in found if frame is not None)
        print(f"  greedy codes: {found.count(None)} of {len(found)} turns equal; others differ first at {later}")
        print(f"  {self.judged(variant, codes) if later else 'speech as it is'}", flush=True)

    def judged(self, variant: Variant, codes: list[Tensor]) -> str:
        rate, normalizer, utterances = variant.generator.sample_rate, load_normalizer("en"), []
        for prompt, turn in zip(self.prompts, codes, strict=True):
            audio = spoken(variant.generator, turn)
            u = Utterance(prompt.id, System.model, 0, prompt.cluster, prompt.speaker, prompt.text, len(audio) / rate)
            add_words(u, self.recognizer.transcribe(audio, rate) if len(audio) else "", normalizer)
            assert prompt.reference is not None, "the demo's recordings are here"
            voice, recorded = [self.embedder.embed(heard, rate) for heard in (audio, prompt.reference.load(rate))]
            u.cosine_recording = None if voice is None or recorded is None else cosine(voice, recorded)
            utterances.append(u)
        metrics = ("wer_corpus", "cosine_recording")
        samples = self.settings.bootstrap_samples
        scores = score_system(System.model, utterances, len(utterances), metrics, bootstrap_samples=samples).metrics
        return f"WER {interval(scores['wer_corpus'])}, cosine {interval(scores['cosine_recording'])}"


def interval(score: object) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if isinstance(score, Estimate) else str(score)


# ------------------------------------------------------------------------------------------- random weights


def measure_random(name: str, scheme: str, device: str, frames: int) -> dict[str, float]:
    """Memory and time of a frame of random bf16 weights; scheme "bf16" leaves them as they are."""
    config = read_request([f"model={name}"])[0].model
    with torch.device("meta"):
        model = CSM(config)
    model.to_empty(device=device)
    for module in (model, *model.modules()):
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != torch.bfloat16:
                value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
                module._parameters[key] = nn.Parameter(value.normal_(std=0.02), requires_grad=False)
    if scheme != "bf16":
        for layer, shape in Quantization(scheme).layers(config).items():
            linear = model.get_submodule(layer.removesuffix(".weight"))
            packed = leaves(quantize_weight(linear.weight.detach(), scheme))
            where = device if scheme == "int4" else "meta"
            linear.weight = as_parameter(with_leaves(template(scheme, shape, torch.bfloat16, where), packed))
    weights = nbytes(list(plain_tensors(model.state_dict()).values()))
    engine = Engine(DecodingWeights(model.eval(), share=True), slots=1)
    gc.collect()
    turn = TurnTokens(list(range(1, 13)), None)
    prompt = conversation_frames([turn], config.num_codebooks)
    engine.submit(Request(prompt.tokens, prompt.mask, frames + 3, Sampling(temperature=0.9, seed=0)))
    seconds = []
    clock = CLOCK[device]
    for _ in range(frames + 2):
        started = clock()
        engine.advance()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    resident = torch.cuda.memory_allocated() if device == "cuda" else _resident()
    return {"weights": weights, "resident": resident, "ms": 1000 * min(seconds[2:])}


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def compare_random(options: argparse.Namespace) -> None:
    schemes = ["bf16", *options.schemes]
    for scheme in schemes:
        if scheme == "int4" and options.device != "cuda":
            continue
        command = [sys.executable, __file__, "--random", options.random, "--device", options.device]
        command += ["--threads", str(options.threads), "--frames", str(options.frames), "--one", scheme]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        print(
            f"{options.random} {scheme:<13} weights {result['weights'] / MB:7.0f} MB, resident with engine "
            f"{result['resident'] / MB:7.0f} MB, {result['ms']:8.0f} ms a frame",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained model on the dataset's codec")
    parser.add_argument("--data", type=Path, help="a prepared dataset")
    parser.add_argument("--random", metavar="NAME", help="a model configuration, such as csm_1b")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=SCHEMES)
    parser.add_argument("--device", default="cpu", choices=sorted(CLOCK))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=16, help="0: no speech")
    parser.add_argument("--frames", type=int, default=3, help="with --random")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure_random(options.random, options.one, options.device, options.frames)))
        return
    print(f"{platform.machine()}, device {options.device}, {options.threads} CPU threads, torch {torch.__version__}")
    if options.random:
        compare_random(options)
    elif options.model and options.data:
        compare(options)
    else:
        parser.error("give --model and --data, or --random")


if __name__ == "__main__":
    main()
