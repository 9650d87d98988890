"""Command line `csm <command>`: one-shot tools around a model.

csm generate MODEL --text "..."      speech from an exported model
csm export CHECKPOINT --out DIR      a model directory in any layout from a checkpoint in any layout
csm quantize MODEL --scheme int8 --out DIR    a smaller model directory
csm serve MODEL                      speech over HTTP, with OpenAI's API
csm demo MODEL                       a page on which two voices speak a script
csm watermark detect FILE...         whether files carry the mark of generated speech
csm plan model=csm_1b gpus=8 ...     memory, time and storage of a training run
csm curves RUN_DIR                   losses, gradient norms and sample metrics of a training on one page
csm models [NAME]                    published models of this architecture
csm extend-vocabulary MODEL --tokens FILE --out DIR    more text tokens, or another tokenizer
csm voice make NAME --model MODEL --turns FILE    a voice: reference turns for every context; csm voice list
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from csm.audio import check_wav_name, save_wav
from csm.curves import page as curves
from csm.demo import command as demo
from csm.errors import user_errors
from csm.formats import commands as model_commands
from csm.formats import hub
from csm.formats.export import ADAPTER, LAYOUTS
from csm.formats.export import export as export_checkpoint
from csm.formats.load import DTYPES, generation_dtype, load_generator
from csm.formats.open import open_checkpoint
from csm.formats.quantize import quantize as quantize_checkpoint
from csm.inference import voice_command
from csm.inference.guards import Guards
from csm.inference.long_text import speak_long
from csm.inference.records import read_context
from csm.inference.sampling import Sampling
from csm.inference.voice import find_voice
from csm.planning.estimate import make_plan
from csm.planning.estimate import remedy as plan_remedy
from csm.planning.report import plan_json, print_plan
from csm.planning.request import read_request
from csm.quantization.schemes import PARTS, SCHEMES
from csm.serving import command as serve_command
from csm.watermark import command as watermark

_ENDS = {
    "stop": "",
    "length": " (cut off at --max-audio-length-ms, or far beyond what the text takes)",
    "repetition": " (ended: it repeated itself)",
    "silence": " (ended: it had fallen silent)",
}


def generate(arguments: argparse.Namespace) -> None:
    check_wav_name(arguments.out)
    # Options are checked before the model is loaded.
    sampling = Sampling(arguments.temperature, arguments.topk, arguments.seed, arguments.guidance)
    voice = None if arguments.voice is None else find_voice(arguments.voice)
    generator = load_generator(
        arguments.model,
        arguments.device,
        generation_dtype(arguments.device, arguments.dtype),
        arguments.codec,
        arguments.tokenizer,
        slots=2 if sampling.guided else 1,
        num_codebooks=arguments.num_codebooks,
        watermark=arguments.watermark,
    )
    context = [] if voice is None else voice.segments(generator, arguments.speaker)
    if arguments.context:
        context += read_context(arguments.context, generator.sample_rate)
    options: dict[str, Any] = {
        "max_audio_length_ms": arguments.max_audio_length_ms,
        "temperature": arguments.temperature,
        "topk": arguments.topk,
        "seed": arguments.seed,
        "guidance": arguments.guidance,
        "guards": Guards.off() if arguments.no_guards else Guards(),
    }
    if arguments.long:
        turns = list(speak_long(generator, arguments.text, arguments.speaker, context, **options))
    else:
        turns = [generator.generate_segment(arguments.text, arguments.speaker, context, **options)]
    audio = torch.cat([turn.audio for turn in turns])
    if not len(audio):
        raise ValueError("the model ended the turn before saying anything; try another --seed or more context")
    audio = generator.watermark.embed(audio, generator.sample_rate)
    save_wav(arguments.out, audio, generator.sample_rate)
    notes = {_ENDS[turn.finish_reason]: None for turn in turns}  # each once, in order
    mark = f", marked by {generator.watermark.name}" if generator.watermark.name != "none" else ", not marked"
    print(f"{arguments.out}: {len(audio) / generator.sample_rate:.2f} s{mark}{''.join(notes)}")


def export(arguments: argparse.Namespace) -> None:
    if arguments.dry_run and not arguments.push_to_hub:
        raise ValueError("--dry-run belongs to --push-to-hub OWNER/NAME")
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.codec, arguments.tokenizer, arguments.ema)
    export_checkpoint(checkpoint, arguments.out, arguments.format, dtype, arguments.overwrite)
    if arguments.format == ADAPTER:
        print(f"{arguments.out}: put it on transformers' model with peft.PeftModel.from_pretrained")
    else:
        print(f"{arguments.out}: load it with csm.load_generator, or speak from it with `csm generate {arguments.out}`")
    if arguments.push_to_hub:
        for line in hub.push(arguments.out, arguments.push_to_hub, arguments.private, arguments.dry_run):
            print(line)


def quantize(arguments: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(arguments.model, arguments.codec, arguments.tokenizer)
    parts = tuple(arguments.parts.split(","))
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    quantize_checkpoint(
        checkpoint, arguments.scheme, parts, arguments.out, arguments.device, dtype, arguments.overwrite
    )
    print(f"{arguments.out}: load it with csm.load_generator, or speak from it with `csm generate {arguments.out}`")


def plan(arguments: argparse.Namespace) -> None:
    config, options = read_request(arguments.words)
    result = make_plan(config, options)
    remedy = plan_remedy(config, options, result)
    if arguments.json:
        print(plan_json(result, options, remedy))
    else:
        print_plan(result, options, remedy, Console())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="csm", description="Tools around CSM models.")
    commands = parser.add_subparsers(dest="command", required=True)

    speak = commands.add_parser(
        "generate", help="speech from an exported model", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    speak.add_argument("model", help="checkpoint in any layout (train.py leaves one in run_dir/export) or hub id")
    speak.add_argument("--text", required=True, help="what to say")
    speak.add_argument("--speaker", type=int, default=0, help="number of the speaker who says it")
    speak.add_argument(
        "--voice", metavar="NAME|PATH", help="a voice of `csm voice make`, for --speaker: its turns begin the context"
    )
    speak.add_argument("--context", type=Path, help="JSON Lines of earlier turns: speaker, text, audio")
    speak.add_argument("--out", type=Path, default=Path("out.wav"), help="a WAV file")
    speak.add_argument("--max-audio-length-ms", type=float, default=30_000, help="longest turn, in milliseconds")
    speak.add_argument("--temperature", type=float, default=0.9, help="0: greedy")
    speak.add_argument("--topk", type=int, default=50, help="0: draw from all codes")
    speak.add_argument("--seed", type=int, help="makes sampling reproducible")
    speak.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="towards the text, for models trained with data.text_dropout; 1: none",
    )
    speak.add_argument("--long", action="store_true", help="a text longer than a turn, spoken sentence by sentence")
    speak.add_argument(
        "--num-codebooks", type=int, help="generate only the first codebooks: faster, coarser; None: all"
    )
    speak.add_argument("--no-guards", action="store_true", help="only the model and --max-audio-length-ms end the turn")
    speak.add_argument("--watermark", default="auto", help="auto, required, none, or a backend: perth ...")
    speak.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights; None: bf16 on CUDA, else as stored")
    speak.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    _add_parts(speak)
    speak.set_defaults(run=generate)

    convert = commands.add_parser("export", help="a model directory from a checkpoint, in any layout")
    convert.add_argument("checkpoint", help="a .ckpt file of train.py, a model directory in any layout, or a hub id")
    convert.add_argument("--out", type=Path, required=True, help="directory to write")
    convert.add_argument(
        "--format",
        choices=[*LAYOUTS, ADAPTER],
        default="native",
        help="native (default); sesame: for Sesame's code; hf: for transformers; all: one directory for both of them; "
        "peft: the LoRA adapter alone",
    )
    convert.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights (default: as stored)")
    convert.add_argument("--ema", action="store_true", help="averaged weights of a training with trainer.ema_decay")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing model directory")
    convert.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this repository")
    convert.add_argument("--private", action="store_true", help="with --push-to-hub: create it as a private repository")
    convert.add_argument("--dry-run", action="store_true", help="with --push-to-hub: only list what would be uploaded")
    _add_parts(convert)
    convert.set_defaults(run=export)

    smaller = commands.add_parser("quantize", help="a smaller model directory: int8, int4 or fp8 linear layers")
    smaller.add_argument("model", help="checkpoint in any layout, or hub id")
    smaller.add_argument("--scheme", choices=SCHEMES, required=True, help="docs/quantization.md compares them")
    smaller.add_argument("--parts", default=",".join(PARTS), help="backbone, decoder, or both (default)")
    smaller.add_argument("--out", type=Path, required=True, help="directory to write")
    smaller.add_argument("--dtype", choices=sorted(DTYPES), help="of everything else (default: as stored)")
    smaller.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="int4 needs cuda")
    smaller.add_argument("--overwrite", action="store_true", help="replace an existing model directory")
    _add_parts(smaller)
    smaller.set_defaults(run=quantize)

    serve_command.add_parser(commands)

    estimate = commands.add_parser(
        "plan",
        help="memory, time and storage of a training run",
        description="Its own keys, all optional: gpu, gpus, gpus_per_node, hours (of audio), epochs, mfu, "
        "text_tokens_per_second (csm/config/training.py, PlanConfig). All others are those of train.py: "
        "csm plan model=csm_8b gpus=64 gpu=h100 strategy=fsdp hours=100000 data.micro_batch_size=2",
    )
    estimate.add_argument("words", nargs="*", metavar="key=value")
    estimate.add_argument("--json", action="store_true", help="print the plan as JSON")
    estimate.set_defaults(run=plan)

    curves.add_parser(commands)
    model_commands.add_parser(commands)
    watermark.add_parser(commands)
    demo.add_parser(commands)
    voice_command.add_parser(commands)
    return parser


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--codec", metavar="FILE", help="Mimi weights in moshi's format, instead of the hub's")
    parser.add_argument("--tokenizer", metavar="PATH", help="for a checkpoint in Sesame's layout without one")


def main() -> None:
    arguments = build_parser().parse_args()
    with user_errors():
        arguments.run(arguments)


if __name__ == "__main__":
    main()
