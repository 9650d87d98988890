"""`csm demo MODEL`: serves the demo's page."""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from csm.demo.stage import Stage
from csm.demo.voices import Voice, read_voices
from csm.formats.load import DTYPES, generation_dtype, load_generator
from csm.watermark import load_watermark

LARGEST_UPLOAD = 20 * 2**20  # bytes


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="a page on which two voices speak a script",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="checkpoint in any layout (train.py leaves one in run_dir/export) or hub id")
    parser.add_argument("--voices", type=Path, help="folder of name.safetensors (csm voice make), or name.wav and .txt")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all who reach this machine")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--slots", type=int, default=2, help="visitors served at the same time; others wait")
    parser.add_argument("--watermark", default="auto", help="auto, required, none, or a backend: perth ...")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights; None: bf16 on CUDA, else as stored")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--codec", metavar="FILE", help="Mimi weights in moshi's format, instead of the hub's")
    parser.add_argument("--tokenizer", metavar="PATH", help="for a checkpoint in Sesame's layout without one")
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> None:
    if find_spec("gradio") is None:
        raise ModuleNotFoundError("csm demo needs Gradio: pip install 'csm-train[demo]'")
    mark = load_watermark(arguments.watermark, streams=True)
    generator = load_generator(
        arguments.model,
        arguments.device,
        generation_dtype(arguments.device, arguments.dtype),
        arguments.codec,
        arguments.tokenizer,
        slots=arguments.slots,
        watermark="none",
    )
    generator.watermark = mark
    voices = read_voices(arguments.voices, generator) if arguments.voices else {}
    with tempfile.TemporaryDirectory(prefix="csm-demo-") as files:
        launch(Stage(generator), voices, Path(files), arguments.host, arguments.port)


def launch(stage: Stage, voices: dict[str, Voice], files: Path, host: str, port: int | None, block: bool = True) -> Any:
    """Serves the page until Ctrl-C, or in the background; returns its `gradio.Blocks`.

    files: where what visitors send and get is kept; port: None takes a free one
    """
    os.environ["GRADIO_TEMP_DIR"] = str(files)  # both are read when it is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent anywhere
    from csm.demo.page import build_page

    page = build_page(stage, voices)
    page.queue(max_size=32).launch(
        server_name=host,
        server_port=port,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        share=False,
        ssr_mode=False,
        quiet=not block,
        prevent_thread_lock=not block,
    )
    return page
