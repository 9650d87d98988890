"""Streamed codecs compared with their offline decode: the sound, and the time of a frame.

    python benchmarks/streaming_codec.py --data runs/demo-data [--device cpu]

Of every turn of the dataset, which must be made with the spectral codec: distances of log-mel spectrograms (root mean
square over time and bands), and word errors of Whisper tiny.en (beam 5, texts normalized as in evaluations). Then the
milliseconds of one frame of all slots, for the spectral codec and for Mimi at its full size with random weights.
Record results in docs/benchmarks.md with hardware and versions.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csm.codec import Codec, SpectralCodec, mel
from csm.config import AsrKind
from csm.data.dataset import ShardedDataset
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import align_words, corpus_wer, count_errors
from csm.judges.whisper import load_recognizer

DECIBELS = 20 / math.log(10)
SLOTS = (1, 4, 16)


def stream(codec: Codec, codes: Tensor) -> Tensor:
    """Codes [K, T] -> audio [T * samples_per_frame], frame by frame."""
    decoder, active = codec.streaming_decoder(1), torch.ones(1, dtype=torch.bool)
    frames = [decoder.decode(codes[None, :, i, None], active)[0] for i in range(codes.shape[1])]
    return torch.cat([*frames, decoder.finish(0)])[decoder.delay :]


def distance(a: Tensor, b: Tensor) -> float:
    """Between log-mel spectrograms, in dB."""
    return DECIBELS * float((a - b).square().mean().sqrt())


def sound(dataset: ShardedDataset, codec: SpectralCodec) -> None:
    def spectrogram(audio: Tensor) -> Tensor:
        return mel.log_mel(mel.stft(mel.add_margins(audio.cpu())).abs(), mel.mel_filterbank())

    recognizer = load_recognizer(AsrKind.faster_whisper, None, "en", "cpu")
    normalizer = load_normalizer("en")
    distances: dict[str, list[float]] = {"offline to codes": [], "streamed to codes": [], "streamed to offline": []}
    errors: dict[str, list] = {"offline": [], "streamed": []}
    for number in range(len(dataset)):
        sample = dataset.read(number)
        for turn in sample.turns:
            codes = torch.from_numpy(sample.turn_codes(turn)).long()
            audio = {"offline": codec.decode(codes[None])[0, 0], "streamed": stream(codec, codes)}
            wanted = codec.log_mel(codes).cpu()
            offline, streamed = spectrogram(audio["offline"]), spectrogram(audio["streamed"])
            distances["offline to codes"].append(distance(offline, wanted))
            distances["streamed to codes"].append(distance(streamed, wanted))
            distances["streamed to offline"].append(distance(streamed, offline))
            for name, samples in audio.items():
                heard = normalizer(recognizer.transcribe(samples.cpu(), codec.sample_rate))
                errors[name].append(count_errors(align_words(normalizer(turn.text), heard)))
    for name, values in distances.items():
        print(f"{name:<20} {sum(values) / len(values):.2f} dB, mean of {len(values)} turns")
    for name, counts in errors.items():
        words = sum(count.reference_words for count in counts)
        print(f"WER {name:<16} {corpus_wer(counts):.4f} of {words} words")


def speed(name: str, codec: Codec, device: torch.device, frames: int = 20) -> None:
    for slots in SLOTS:
        decoder, active = codec.streaming_decoder(slots), torch.ones(slots, dtype=torch.bool, device=device)
        codes = torch.randint(1, codec.codebook_size, (frames, slots, codec.num_codebooks, 1), device=device)
        seconds = []
        for frame in codes:
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            decoder.decode(frame, active).cpu()
            seconds.append(time.perf_counter() - started)
        print(
            f"{name:<10} {slots:3d} slots  {1000 * sorted(seconds)[frames // 2]:7.2f} ms a frame (median)", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset of the spectral codec")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"{options.threads} CPU threads, device {device}, torch {torch.__version__}")
    codec = SpectralCodec.load(options.data / "codec.safetensors", device)
    sound(ShardedDataset(options.data), codec)
    speed("spectral", codec, device)

    from moshi.models import loaders

    from csm.codec.mimi import MimiCodec

    speed("mimi", MimiCodec(loaders.get_mimi(None, device=device, num_codebooks=32)), device)


if __name__ == "__main__":
    main()
