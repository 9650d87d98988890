"""Fine-tuning a base model to a voice that it has not heard: full, LoRA, decoder alone, each with and without replay.

    python benchmarks/finetune_voice.py runs/quickstart/export runs/demo-data --minutes 3 10 20
    python benchmarks/finetune_voice.py runs/proving_desk/export data/desk --held-out data/desk_test_sentence \
        --experiment proving_desk --shifts 4 --steps 200 data.num_workers=0

The new voice is one of the program flite (or espeak-ng, with `--program espeak-ng`), which reads lines of the base's
dataset, and joined pairs of them where they do not make `--minutes` of audio. Lines that are judged were never said by
the new voice in training: those of `--held-out`, or every fifth of the base's own, which it can say in its own voices.
The new voice is speaker 2, the base's are 0 and 1. Words at the end are options of train.py for all arms.

Prints for each arm, and for the base before it, with the mean over the held-out lines:

new        cosine of speaker embeddings of generated speech and the new voice's recordings after the codec
old        the same with the nearer of the base's two voices: below `new` where the voice was learned
WER        word errors of the held-out lines in the new voice, and of the recordings after the codec for comparison
own lines  WER of lines by speaker 0 and their cosine with its voice: what is forgotten. Lines that it said in training,
           or the held-out ones with `--held-out`
ended      share of all these turns that the model ended itself
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csm import load_generator
from csm.audio import load_audio
from csm.codec import Codec
from csm.compose import TRAIN
from csm.config import CodecConfig, CodecKind, SpeakerKind
from csm.data.dataset import ShardedDataset
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import align_words, count_errors
from csm.inference.generator import Generator, SpeechRequest
from csm.judges.faster_whisper import FasterWhisper
from csm.judges.speaker import SpeakerEmbedder, cosine, load_embedder
from csm.training.build import train
from data_prep.config import DataPrepConfig, ExecutorConfig, ExecutorKind, TranscribeBackend
from data_prep.prepare import prepare

NEW, HELD_OUT = 2, 5
ARMS = {
    "full": ["optim.lr={lr}"],
    "lora": ["optim.lr={lora_lr}", "lora.rank=16", "lora.alpha=16"],
    "decoder": ["optim.lr={lr}", "freeze=[backbone,embeddings]"],
}


@dataclass
class Judges:
    recognizer: FasterWhisper
    embedder: SpeakerEmbedder

    def __post_init__(self) -> None:
        self.normalizer = load_normalizer("en")

    def wer(self, spoken: list[tuple[str, Tensor]], rate: int) -> float:
        errors = words = 0
        for text, audio in spoken:
            heard = self.recognizer.transcribe(audio, rate) if len(audio) else ""
            counted = count_errors(align_words(self.normalizer(text), self.normalizer(heard)))
            errors, words = errors + counted.errors, words + counted.reference_words
        return errors / words

    def voice(self, audios: list[Tensor], rate: int) -> Tensor:
        """Unit mean of the embeddings [D]."""
        found = [self.embedder.embed(audio, rate) for audio in audios if len(audio)]
        return torch.nn.functional.normalize(torch.stack([v for v in found if v is not None]).mean(0), dim=0)

    def similarity(self, audios: list[Tensor], voice: Tensor, rate: int) -> float:
        found = [self.embedder.embed(audio, rate) if len(audio) else None for audio in audios]
        return sum(0.0 if v is None else cosine(v, voice) for v in found) / len(found)


def record(program: str, voice: str, text: str, path: Path) -> float:
    """Has `program` read a text into a WAV file; returns its seconds."""
    command = (
        ["flite", "-voice", voice, "-t", text, "-o"] if program == "flite" else ["espeak-ng", "-v", voice, text, "-w"]
    )
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    return len(load_audio(path, 24_000)) / 24_000


def make_dataset(folder: Path, lines: list[str], minutes: float, codec: Codec, arguments: argparse.Namespace) -> float:
    """Recordings and dataset of the new voice below `folder`, encoded by the base's codec; returns the minutes made."""
    texts = list(lines)
    texts += [f"{first} {lines[(n * 7 + 3) % len(lines)]}" for n, first in enumerate(lines * 20)]
    seconds, records = 0.0, []
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        if seconds >= 60 * minutes:
            break
        length = record(arguments.program, arguments.voice, text, folder / f"{number}.wav")
        seconds += length
        turn = {"speaker": NEW, "text": text, "start": 0.0, "end": length}
        split = "val" if number % 20 == 19 else "train"
        records.append({"id": f"n{number}", "audio": f"{number}.wav", "split": split, "turns": [turn]})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(entry) for entry in records))
    config = DataPrepConfig(
        input=str(folder / "manifest.jsonl"),
        output=str(folder / "data"),
        source="new",
        lang="en",
        licence="CC0-1.0",
        codec=CodecConfig(
            kind=CodecKind.spectral,
            path=str(Path(arguments.base) / "codec.safetensors"),
            num_codebooks=codec.num_codebooks,
            codebook_size=codec.codebook_size,
        ),
        executor=ExecutorConfig(ExecutorKind.inline),
        work=str(folder / "work"),
    )
    config.transcribe.backend = TranscribeBackend.none
    config.encode.shifts = arguments.shifts
    config.dedup.fingerprint = False  # joined lines hold single ones
    prepare(config)
    return seconds / 60


def read_turns(path: str, split: str, limit: int | None = None) -> dict[int, dict[str, Tensor]]:
    """Codes [K, T] of the turns of a dataset, by speaker and text, of its first `limit` conversations."""
    dataset = ShardedDataset(path)
    turns: dict[int, dict[str, Tensor]] = {0: {}, 1: {}}
    for number in dataset.select(split)[:limit]:
        sample = dataset.read(int(number))
        for turn in sample.turns:
            turns[turn.speaker].setdefault(turn.text, torch.from_numpy(sample.turn_codes(turn)))
    return turns


def speak(generator: Generator, texts: list[str], speaker: int) -> tuple[list[Tensor], int]:
    """(greedy speech of each text, how many turns the model ended)."""
    requests = [SpeechRequest(text, speaker, (), 12_000, temperature=0) for text in texts]
    turns = generator.generate_batch(requests)
    return [turn.audio for turn in turns], sum(turn.finish_reason == "stop" for turn in turns)


def score(name: str, model: Path, judges: Judges, held: list[str], own: list[str], voices: dict[int, Tensor]) -> None:
    generator = load_generator(model, "cpu", torch.float32)
    rate = generator.sample_rate
    new, ended_new = speak(generator, held, NEW)
    old, ended_old = speak(generator, own, 0)
    nearer = max(judges.similarity(new, voices[speaker], rate) for speaker in (0, 1))
    print(
        f"{name:24s} new {judges.similarity(new, voices[NEW], rate):.3f}  old {nearer:.3f}  "
        f"WER {judges.wer(list(zip(held, new, strict=True)), rate):6.1%}   own lines: "
        f"WER {judges.wer(list(zip(own, old, strict=True)), rate):6.1%}, voice "
        f"{judges.similarity(old, voices[0], rate):.3f}   ended {(ended_new + ended_old) / len(held + own):.0%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="model directory with a spectral codec, such as runs/quickstart/export")
    parser.add_argument("data", help="its dataset, such as runs/demo-data")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument(
        "--replay", type=float, nargs="+", default=[0.0, 0.3], help="shares of the base's data in the rows"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", default="5e-4")
    parser.add_argument("--lora-lr", default="3e-3")
    parser.add_argument("--program", choices=["flite", "espeak-ng"], default="flite")
    parser.add_argument("--voice", default="awb")
    parser.add_argument("--lines", type=int, default=10, help="held-out and own lines that are spoken, each")
    parser.add_argument("--held-out", metavar="DATASET", help="dataset whose lines (split val) are judged")
    parser.add_argument("--experiment", default="quickstart", help="that the base was trained with")
    parser.add_argument("--shifts", type=int, default=1, help="encodings of each turn (encode.shifts of data_prep)")
    arguments, words = parser.parse_known_args()

    turns = read_turns(arguments.data, "train", 200)
    lines = [*turns[0], *turns[1]]
    if arguments.held_out:
        taught = lines
        held = own = list(read_turns(arguments.held_out, "val")[0])[: arguments.lines]
    else:
        taught = [text for number, text in enumerate(lines) if number % HELD_OUT]
        held, own = lines[::HELD_OUT][: arguments.lines], list(turns[0])[1 : 1 + 2 * arguments.lines : 2]

    judges = Judges(
        FasterWhisper("bundled", "cpu", option="--recognizer"), load_embedder(SpeakerKind.resemblyzer, None, "cpu")
    )
    base = load_generator(arguments.base, "cpu", torch.float32, slots=1)
    rate, codec = base.sample_rate, base.codec
    voices = {
        speaker: judges.voice([codec.decode(codes[None])[0, 0] for codes in list(found.values())[:50]], rate)
        for speaker, found in turns.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        recorded = []
        for number, text in enumerate(held):
            path = Path(scratch) / f"held-{number}.wav"
            record(arguments.program, arguments.voice, text, path)
            audio = load_audio(path, rate)
            recorded.append((text, codec.decode(codec.encode(audio[None, None]))[0, 0]))
        voices[NEW] = judges.voice([audio for _, audio in recorded], rate)
        print(
            f"{arguments.program} {arguments.voice}: recordings after the codec WER {judges.wer(recorded, rate):.1%}; "
            f"cosine of the voices {float(voices[NEW] @ voices[0]):.3f} with 0, "
            f"{float(voices[NEW] @ voices[1]):.3f} with 1, 0 with 1 {float(voices[0] @ voices[1]):.3f}"
        )
        score("base", Path(arguments.base), judges, held, own, voices)
        for minutes in arguments.minutes:
            folder = Path(scratch) / f"new-{minutes:g}"
            made = make_dataset(folder, taught, minutes, codec, arguments)
            for arm in arguments.arms:
                for replay in arguments.replay:
                    name = f"{arm} {made:.1f} min" + (f" replay {replay:g}" if replay else "")
                    run = folder / name.replace(" ", "-")
                    sources = f"new: {{path: {folder / 'data'}, weight: {1 - replay}}}"
                    if replay:
                        sources += f", base: {{path: {arguments.data}, weight: {replay}}}"
                    options = [
                        *(
                            f"experiment={arguments.experiment}",
                            "data.path=null",
                            "data.prepare=null",
                            f"init_from={arguments.base}",
                        ),
                        f"+data.sources={{{sources}}}",
                        *(word.format(lr=arguments.lr, lora_lr=arguments.lora_lr) for word in ARMS[arm]),
                        *("optim.warmup_steps=10", "optim.schedule=cosine", f"trainer.max_steps={arguments.steps}"),
                        *("trainer.val_every_steps=0", "trainer.sample_every_steps=0", "trainer.log_every_steps=0"),
                        *(f"run_dir={run}", *words),
                    ]
                    started = time.monotonic()
                    train(TRAIN.options(TRAIN.compose(options)))
                    seconds = time.monotonic() - started
                    score(f"{name} ({seconds:.0f} s)", run / "export", judges, held, own, voices)


if __name__ == "__main__":
    main()
