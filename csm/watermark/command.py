"""`csm watermark`: finds marks in audio files, and puts them there.

csm watermark detect FILE...    a confidence for each file
csm watermark embed IN OUT      a marked WAV file
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
import torch

from csm.audio import check_wav_name, load_channels, mean_of_channels
from csm.files import write_atomically
from csm.watermark.base import THRESHOLD, UNMARKED, Watermark
from csm.watermark.choice import load_watermark

WINDOW_SECONDS = 30
"""Longer files are searched piece by piece: where only a part is synthetic, a mean over the file would hide it."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("watermark", help="find or put marks of synthetic speech in audio files")
    actions = parser.add_subparsers(dest="action", required=True)

    find = actions.add_parser("detect", help="a confidence in 0..1 for each file")
    find.add_argument("files", nargs="+", type=Path, metavar="FILE")
    find.add_argument("--backend", default="perth", help="whose mark is looked for (default: perth)")
    find.set_defaults(run=detect)

    put = actions.add_parser("embed", help="a marked copy of a file")
    put.add_argument("input", type=Path, metavar="IN")
    put.add_argument("output", type=Path, metavar="OUT", help="a WAV file, of the same sample rate and channels")
    put.add_argument("--backend", default="perth", help="whose mark is put there (default: perth)")
    put.set_defaults(run=embed)


def detect(arguments: argparse.Namespace) -> None:
    watermark = load_watermark(arguments.backend)
    for path in arguments.files:
        channels, rate = load_channels(path)
        mono = torch.from_numpy(mean_of_channels(channels.numpy().T))
        confidence, start = highest(watermark, mono, rate)
        verdict = f"marked by {watermark.name}" if confidence >= THRESHOLD else f"no mark of {watermark.name}"
        place = f", highest at {start:.0f} s" if len(mono) > WINDOW_SECONDS * rate else ""
        print(f"{path}: {confidence:.3f} ({verdict}{place})", flush=True)


def highest(watermark: Watermark, mono: torch.Tensor, rate: int) -> tuple[float, float]:
    """The highest confidence of the windows of `mono [num_samples]`, and where that window begins, in seconds."""
    window = WINDOW_SECONDS * rate
    found = [(watermark.detect(piece, rate), WINDOW_SECONDS * n) for n, piece in enumerate(mono.split(window))]
    return max(found, key=lambda one: one[0])


def embed(arguments: argparse.Namespace) -> None:
    check_wav_name(arguments.output)
    watermark = load_watermark(arguments.backend)
    if watermark is UNMARKED:
        raise ValueError(f"--backend {arguments.backend}: puts no mark; choose a backend that is installed, like perth")
    channels, rate = load_channels(arguments.input)
    marked = torch.stack([watermark.embed(channel, rate) for channel in channels])  # [C, N]
    samples = marked.clamp(-1.0, 1.0).T.numpy()
    write_atomically(
        arguments.output, lambda file: soundfile.write(file, samples, rate, subtype="PCM_16", format="WAV")
    )
    print(f"{arguments.output}: {len(samples) / rate:.2f} s, marked by {watermark.name}")
