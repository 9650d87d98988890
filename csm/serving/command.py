"""`csm serve MODEL`: the speech server on the command line."""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import torch

from csm.formats.load import DTYPES, generation_dtype, load_generator
from csm.inference.generator import Generator
from csm.inference.voice import Voice, find_voice
from csm.watermark import load_watermark

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="a speech server with OpenAI's API, voices, conversations and a WebSocket",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="checkpoint in any layout, or hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others need --api-key-env or --open")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--slots", type=int, default=8, help="turns spoken at the same time; others wait")
    parser.add_argument("--queue", type=int, default=32, help="responses that wait for a slot; more are refused")
    parser.add_argument(
        "--name", action="append", help="name of the model in requests, several: aliases; None: MODEL's"
    )
    parser.add_argument(
        "--voice",
        action="append",
        default=[],
        metavar="NAME=VOICE",
        help="a name for a speaker of the model (alloy=0), or for a voice of csm voice make, by its file or name",
    )
    parser.add_argument("--data", type=Path, default=Path("csm_data"), help="folder of voices and conversations")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the API key")
    parser.add_argument("--open", action="store_true", help="serve other machines without a key")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="web pages that may call")
    parser.add_argument(
        "--num-codebooks", type=int, help="generate only the first codebooks: faster, coarser; None: all"
    )
    parser.add_argument(
        "--mode",
        choices=("eager", "compiled", "cuda_graph"),
        default="eager",
        help="how a frame is computed, see docs/inference.md",
    )
    parser.add_argument(
        "--watermark", default="auto", help="of all speech: auto, required, none, or a backend, see docs/watermark.md"
    )
    parser.add_argument("--quantize", help="int8, int8-dynamic, int4 or fp8, see docs/quantization.md")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights; None: bf16 on CUDA, else as stored")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--codec", metavar="FILE", help="Mimi weights in moshi's format, instead of the hub's")
    parser.add_argument("--tokenizer", metavar="PATH", help="for a checkpoint in Sesame's layout without one")
    parser.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> None:
    """Runs a server until it is told to stop. Raises ValueError for options that do not go together."""
    try:
        from csm.serving.marks import Marking
        from csm.serving.server import run_server
        from csm.serving.service import Service
        from csm.serving.settings import Limits, Settings
    except ModuleNotFoundError as error:
        raise ValueError(f'csm serve needs the package {error.name}: pip install "csm-train[serve]"') from error
    key = api_key(arguments.api_key_env)
    local = arguments.host in _LOOPBACK
    if key is None and not local and not arguments.open:
        raise ValueError(
            f"--host {arguments.host} serves other machines: give a key with --api-key-env VARIABLE, or --open for a "
            "server that anybody may use"
        )
    settings = Settings(
        names=tuple(arguments.name or [Path(arguments.model).resolve().name]),
        data=arguments.data,
        api_key=key,
        allowed_origins=tuple(arguments.allow_origin),
        local_only=local,
        voices=dict(_voice(word) for word in arguments.voice),
        limits=Limits(queue=arguments.queue),
    )

    mark = load_watermark(arguments.watermark, streams=True)

    def load() -> Generator:
        generator = load_generator(
            arguments.model,
            arguments.device,
            generation_dtype(arguments.device, arguments.dtype),
            arguments.codec,
            arguments.tokenizer,
            arguments.quantize,
            slots=arguments.slots,
            num_codebooks=arguments.num_codebooks,
            mode=arguments.mode,
            watermark="none",  # responses are marked by the routes
        )
        if arguments.mode != "eager":
            generator.engine.warm_up()
        # Answers whose listeners leave are reference cycles, which hold their audio until a full collection. Python
        # delays those until there are a quarter as many new objects as old ones: frozen, libraries and model are none.
        gc.collect()
        gc.freeze()
        return generator

    run_server(Service(load, settings, Marking(mark.name, mark.stream)), arguments.host, arguments.port)


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable. Raises ValueError if it holds none."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key.isascii() or not key.isprintable() or len(key) < 8:
        raise ValueError(f"--api-key-env {variable}: the variable must hold a key of at least 8 printable characters")
    return key


def _voice(word: str) -> tuple[str, int | Voice]:
    name, _, value = word.partition("=")
    if not name or not value:
        raise ValueError(f"--voice {word}: must be NAME=SPEAKER, such as alloy=0, or NAME=VOICE, of csm voice make")
    return name, int(value) if value.isdecimal() else find_voice(value)
