"""Checks a server with a model that speaks known lines: python benchmarks/serve_check.py MODEL --manifest FILE.

Starts `csm serve MODEL` and says lines of the manifest with OpenAI's own client, streamed, in all six formats; the
first line unstreamed and as events, too. Every answer is decoded and transcribed by the bundled Whisper; the lines of
the quickstart's recordings (data_prep/demo/manifest.jsonl) are those that its model knows by heart. Prints a word error
rate for each format, and what streamed and unstreamed answers differ by; exits with 1 where either is too high.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import torch

from csm.audio import resample
from csm.config import AsrKind
from csm.decode import open_audio
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import WordErrors, align_words, corpus_wer, count_errors
from csm.judges.whisper import load_recognizer

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
RATE = 24_000
MOST_ERRORS = 0.15
"""Word error rate of a format."""
MOST_DIFFERENCE = -40.0
"""dB: streamed and unstreamed speech differ by the rounding of a mark, and what encoders make of it."""


@contextmanager
def served(model: str, *options: str) -> Iterator[str]:
    """Address of a server that is ready; it is stopped as a balancer would stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "csm.cli", "serve", model, "--port", str(port), "--data", data, *options]
        process = subprocess.Popen(command)
        try:
            address = f"http://127.0.0.1:{port}"
            while not is_ready(address):
                if process.poll() is not None:
                    raise SystemExit("the server has ended")
                time.sleep(0.2)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


def decoded(content: bytes, name: str) -> np.ndarray:
    """Samples [n] at 24 kHz."""
    if name == "pcm":
        return np.frombuffer(content, "<i2").astype(np.float32) / 32767
    reader = open_audio(io.BytesIO(content), f"speech.{'ogg' if name == 'opus' else name}")
    samples = torch.from_numpy(np.concatenate(list(reader.blocks()))[:, 0].copy())
    return resample(samples, reader.header.sample_rate, RATE).numpy()


def event_bytes(text: str) -> bytes:
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1]["type"] == "speech.audio.done", events[-1]
    return b"".join(base64.b64decode(event["audio"]) for event in events[:-1])


def difference_db(a: np.ndarray, b: np.ndarray) -> float:
    """Level of the difference of two signals against the first; infinite where one is longer."""
    if len(a) != len(b):
        return float("inf")
    return 10 * float(np.log10(np.sum((a - b) ** 2) / np.sum(a**2) + 1e-12))


def check_refusals(client: openai.OpenAI, model: str) -> None:
    """Errors arrive as the client's own exceptions."""
    for kind, fields in [
        (openai.BadRequestError, {"speed": 2.0}),
        (openai.BadRequestError, {"instructions": "Whisper."}),
        (openai.NotFoundError, {"voice": "nobody"}),
        (openai.NotFoundError, {"model": "gpt-4o-mini-tts"}),
    ]:
        try:
            client.audio.speech.create(**{"model": model, "voice": "speaker_0", "input": "Hello.", **fields})
        except kind as error:
            print(f"refused  {error.status_code}  {error.body['message']}")
        else:
            raise SystemExit(f"not refused: {fields}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--manifest", type=Path, default=Path("data_prep/demo/manifest.jsonl"))
    parser.add_argument("--lines", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.manifest.read_text().splitlines()]
    turns = list(islice((turn for record in records for turn in record["turns"]), arguments.lines))
    recognizer, normalize = load_recognizer(AsrKind.faster_whisper, None, "en", "cpu"), load_normalizer("en")

    def errors(audio: np.ndarray, text: str) -> WordErrors:
        heard = recognizer.transcribe(torch.from_numpy(audio.copy()), RATE)
        return count_errors(align_words(normalize(text), normalize(heard)))

    faults: list[str] = []
    with served(arguments.model, "--name", "served") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        check_refusals(client, "served")
        for name in FORMATS:
            counts: list[WordErrors] = []
            level = 0.0
            for turn in turns:
                extra = {"temperature": arguments.temperature, "seed": arguments.seed}
                voice = f"speaker_{turn['speaker']}"
                fields: dict[str, Any] = {
                    "model": "served",
                    "input": turn["text"],
                    "voice": voice,
                    "response_format": name,
                    "extra_body": extra,
                }
                with client.audio.speech.with_streaming_response.create(**fields) as answer:
                    streamed = decoded(b"".join(answer.iter_bytes()), name)
                if turn is turns[0]:
                    whole = client.audio.speech.create(**{**fields, "extra_body": {**extra, "stream": False}})
                    events = client.audio.speech.create(**fields, stream_format="sse")
                    # Up to rounding: the pieces in which speech is marked depend on time.
                    others = decoded(whole.read(), name), decoded(event_bytes(events.text), name)
                    level = max(difference_db(other, streamed) for other in others)
                counts.append(errors(streamed, turn["text"]))
            wer = corpus_wer(counts)
            print(f"{name:5} {len(turns)} lines  WER {wer:.3f}  streamed against unstreamed {level:.0f} dB", flush=True)
            if wer > MOST_ERRORS:
                faults.append(f"{name}: WER {wer:.3f}, at most {MOST_ERRORS} is accepted")
            if level > MOST_DIFFERENCE:
                faults.append(
                    f"{name}: streams and unstreamed speech differ by {level:.0f} dB, {MOST_DIFFERENCE:.0f} at most"
                )
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
