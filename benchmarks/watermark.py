"""Watermarks on speech of several kinds: detection, false alarms, and what the mark costs.

    python benchmarks/watermark.py MODEL --backend perth --clips 24        needs ffmpeg, flite and espeak-ng

kinds:     `model` speaks lines of the demo dialogues itself; `recordings` are turns of their human speaker;
           `voices` are flite's and espeak-ng's
detection: share of marked clips with a confidence of at least 0.9, of unmarked ones (false alarms), and the lowest and
           highest confidence of each, as the clips are and after what happens to audio on its way
cost:      WER (Whisper tiny.en), cosine of the speaker embedding to another clip of the voice (resemblyzer) and
           quality (DistillMOS) before and after; SNR of the marked signal; seconds per second of audio, whole, streamed
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import distillmos
import numpy as np
import torch
from torch import Tensor

import data_prep.demo
from csm.audio import load_audio, resample
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import align_words, corpus_wer, count_errors
from csm.formats.load import load_generator
from csm.judges.faster_whisper import FasterWhisper
from csm.judges.speaker import Resemblyzer, cosine
from csm.watermark import load_watermark
from csm.watermark.base import THRESHOLD, Watermark

RATE = 24_000
MP3 = ["-c:a", "libmp3lame", "-b:a", "64k", "-f", "mp3"]
OPUS = ["-c:a", "libopus", "-b:a", "24k", "-f", "ogg"]
RAW = ["-f", "f32le", "-ar", str(RATE), "-ac", "1"]
VOICES = [
    *(("flite", voice) for voice in ("kal", "awb", "rms", "slt")),
    *(("espeak-ng", voice) for voice in ("en-us", "en-gb-x-rp", "en-us+f3", "en-gb-scotland+m4")),
]
SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Please bring the three blue folders to the office before noon.",
    "We expect light rain tomorrow morning, and sunshine after lunch.",
)


@dataclass
class Clip:
    """A spoken text. voice: clips with the same one have the same speaker; audio: float32 [num_samples] at RATE."""

    voice: str
    text: str
    audio: Tensor


def turns(speaker: int) -> list[tuple[str, Path, float, float]]:
    """Text, file, start and end in seconds of a speaker's turns in the demo dialogues."""
    folder = Path(data_prep.demo.__file__).parent
    records = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return [
        (turn["text"], folder / record["audio"], turn["start"], turn["end"])
        for record in records
        for turn in record["turns"]
        if turn["speaker"] == speaker and record["split"] == "train"
    ]


def spoken_by_model(model: str, count: int) -> list[Clip]:
    generator = load_generator(model, slots=4, watermark="none")
    lines = turns(0)[:count]
    return [Clip("model", line[0], generator.generate(line[0], 0, [], 15_000, temperature=0)) for line in lines]


def recordings(count: int) -> list[Clip]:
    return [
        Clip("recording", text, load_audio(path, RATE)[round(start * RATE) : round(end * RATE)])
        for text, path, start, end in turns(0)[:count]
    ]


def voices(count: int) -> list[Clip]:
    clips = []
    for (program, voice), text in list(product(VOICES, SENTENCES))[:count]:
        path = Path("/tmp/watermark_voice.wav")
        named = ["-voice", voice, "-t", text, "-o"] if program == "flite" else ["-v", voice, text, "-w"]
        subprocess.run([program, *named, str(path)], check=True, capture_output=True)
        clips.append(Clip(voice, text, load_audio(path, RATE)))
        path.unlink()
    return clips


def ffmpeg(*options: str, data: bytes) -> bytes:
    command = ["ffmpeg", "-v", "error", *options, "-"]
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def coded(audio: Tensor, options: list[str]) -> Tensor:
    """Audio after a codec and back."""
    packed = ffmpeg(*RAW, "-i", "-", *options, data=audio.numpy().tobytes())
    return torch.from_numpy(np.frombuffer(ffmpeg("-i", "-", *RAW, data=packed), np.float32).copy())


def filtered(audio: Tensor, name: str) -> Tensor:
    options = [*RAW, "-i", "-", "-af", name, *RAW]
    return torch.from_numpy(np.frombuffer(ffmpeg(*options, data=audio.numpy().tobytes()), np.float32).copy())


def with_noise(audio: Tensor, db: float) -> Tensor:
    noise = torch.randn(len(audio), generator=torch.Generator().manual_seed(0))
    return audio + noise * audio.norm() / noise.norm() * 10 ** (-db / 20)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda audio: audio,
    "mp3 64k": lambda audio: coded(audio, MP3),
    "Opus 24k": lambda audio: coded(audio, OPUS),
    "8 kHz and back": lambda audio: resample(resample(audio, RATE, 8_000), 8_000, RATE),
    "5 % trimmed": lambda audio: audio[len(audio) // 20 :],
    "noise at 20 dB": lambda audio: with_noise(audio, 20),
    "noise at 30 dB": lambda audio: with_noise(audio, 30),
    "noise at 40 dB": lambda audio: with_noise(audio, 40),
    "gain -12 dB": lambda audio: audio * 0.25,
    "gain +6 dB, clipped": lambda audio: (audio * 2).clamp(-1, 1),
    "speed 0.95, same pitch": lambda audio: filtered(audio, "atempo=0.95"),
    "speed 0.95, lower pitch": lambda audio: resample(audio, 95, 100),
    "speed 0.99, lower pitch": lambda audio: resample(audio, 99, 100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backend", default="perth")
    parser.add_argument("--clips", type=int, default=24, help="of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    watermark = load_watermark(options.backend)
    kinds = {
        "model": spoken_by_model(options.model, options.clips),
        "recordings": recordings(options.clips),
        "voices": voices(options.clips),
    }
    marked = {kind: [watermark.embed(clip.audio, RATE) for clip in clips] for kind, clips in kinds.items()}
    for kind, clips in kinds.items():
        seconds = sorted(len(clip.audio) / RATE for clip in clips)
        print(f"{kind}: {len(clips)} clips of {seconds[0]:.1f} - {seconds[-1]:.1f} s, {sum(seconds):.0f} s in all")

    costs(kinds, marked)
    times(watermark, [clip.audio for clips in kinds.values() for clip in clips])
    print("\n| | " + " | ".join(f"{kind}: found, lowest | false, highest" for kind in kinds) + " |")
    print("|---" * (1 + 2 * len(kinds)) + "|")
    for name, change in CHANGES.items():
        cells = []
        for kind, clips in kinds.items():
            found = [watermark.detect(change(audio), RATE) for audio in marked[kind]]
            false = [watermark.detect(change(clip.audio), RATE) for clip in clips]
            cells.append(f"{sum(one >= THRESHOLD for one in found)}/{len(found)}, {min(found):.2f}")
            cells.append(f"{sum(one >= THRESHOLD for one in false)}/{len(false)}, {max(false):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def costs(kinds: dict[str, list[Clip]], marked: dict[str, list[Tensor]]) -> None:
    listener, embedder = FasterWhisper("bundled", "cpu", option="--"), Resemblyzer("cpu")
    normalize, judge = load_normalizer("en"), distillmos.ConvTransformerSQAModel().eval()

    def wer(texts: list[str], audios: list[Tensor]) -> float:
        spoken = zip(texts, audios, strict=True)
        pairs = [(normalize(text), normalize(listener.transcribe(audio, RATE))) for text, audio in spoken]
        return 100 * (corpus_wer([count_errors(align_words(*pair)) for pair in pairs]) or 0.0)

    @torch.inference_mode()
    def mos(audios: list[Tensor]) -> float:
        return float(np.mean([float(judge(resample(audio, RATE, 16_000)[None])) for audio in audios]))

    print("\n| | WER before | after | cosine before | after | DistillMOS before | after | SNR, median |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, clips in kinds.items():
        texts, audios = [clip.text for clip in clips], [clip.audio for clip in clips]
        others = [next((o.audio for o in clips if o.voice == c.voice and o is not c), None) for c in clips]
        before, after = [], []
        for audio, with_mark, other in zip(audios, marked[kind], others, strict=True):
            vectors = [embedder.embed(one, RATE) for one in (audio, with_mark, other) if one is not None]
            if len(vectors) == 3 and all(vector is not None for vector in vectors):
                before.append(cosine(vectors[0], vectors[2]))
                after.append(cosine(vectors[1], vectors[2]))
        snr = [20 * torch.log10(a.norm() / (m - a).norm()) for a, m in zip(audios, marked[kind], strict=True)]
        print(
            f"| {kind} | {wer(texts, audios):.1f} % | {wer(texts, marked[kind]):.1f} % | {np.mean(before):.3f} | "
            f"{np.mean(after):.3f} | {mos(audios):.2f} | {mos(marked[kind]):.2f} | {np.median(snr):.1f} dB |",
            flush=True,
        )


def times(watermark: Watermark, audios: list[Tensor]) -> None:
    """Whole files against streams of 8 frames and of 1 frame."""
    print("\n| | s per s of audio | largest difference to whole | difference / mark | found |\n|---|---|---|---|---|")
    seconds = sum(map(len, audios)) / RATE
    whole: list[Tensor] = []
    for name, chunk in (("whole", None), ("chunks of 0.64 s", 15_360), ("chunks of 0.08 s", 1_920)):
        started, results = time.perf_counter(), []
        for audio in audios:
            if chunk is None:
                results.append(watermark.embed(audio, RATE))
            else:
                stream = watermark.stream(RATE)
                results.append(torch.cat([*(stream.push(piece) for piece in audio.split(chunk)), stream.flush()]))
        taken = (time.perf_counter() - started) / seconds
        whole = whole or results
        largest = max(float((a - b).abs().max()) for a, b in zip(results, whole, strict=True))
        parts = [float((r - w).norm() / (w - a).norm()) for r, w, a in zip(results, whole, audios, strict=True)]
        found = sum(watermark.detect(audio, RATE) >= THRESHOLD for audio in results)
        print(f"| {name} | {taken:.3f} | {largest:.1e} | {max(parts):.1e} | {found}/{len(audios)} |", flush=True)
    started = time.perf_counter()
    for audio in audios:
        watermark.detect(audio, RATE)
    print(f"\ndetection: {(time.perf_counter() - started) / seconds:.3f} s per s of audio")


if __name__ == "__main__":
    main()
