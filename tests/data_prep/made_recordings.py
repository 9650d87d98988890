"""Recordings and manifests that the tests make up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile


def noise(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Noise whose loudness changes all the time, so that no two frames have the same codes; float32 [N]."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * rate)
    knots = 4 + samples // 900
    envelope = np.interp(np.arange(samples), np.linspace(0, samples, knots), rng.random(knots))
    return (0.1 * envelope * np.convolve(rng.standard_normal(samples), rng.random(5), "same")).astype(np.float32)


def turn(speaker: str | int, start: float, end: float, **more: Any) -> dict[str, Any]:
    return {"speaker": speaker, "text": f"from {start} to {end}", "start": start, "end": end, **more}


def write_manifest(path: Path, recordings: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(recording) + "\n" for recording in recordings))
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Names and contents of everything in a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def comparable(folder: Path) -> dict[str, bytes]:
    """Files that are the same, byte for byte, in datasets from the same input: shards, index, rejects, ledger."""
    files_of = files(folder)
    names = [name for name in files_of if name.endswith((".tar", ".parquet")) and name != "stages.parquet"]
    return {name: files_of[name] for name in names} | {"codec.safetensors": files_of.get("codec.safetensors", b"")}


def calls_manifest(folder: Path) -> Path:
    """Five recordings of four turns each, 16 kHz; the last one is of split val."""
    rows = []
    for n in range(5):
        soundfile.write(folder / f"call{n}.wav", noise(5.0, 16000, n), 16000)
        turns = [turn("ab"[i % 2], 0.1 + i * 1.2, 1.1 + i * 1.2) for i in range(4)]
        rows.append({"audio": f"call{n}.wav", "id": f"Call {n}", "split": "val" if n == 4 else "train", "turns": turns})
    return write_manifest(folder / "calls.jsonl", rows)


def write_pyav(path: Path, audio: np.ndarray, rate: int, container_format: str, codec: str, **options: str) -> None:
    """Encodes float32 [N] by FFmpeg."""
    with av.open(str(path), "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((audio * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
