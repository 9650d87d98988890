"""Fine-tuning a base model to a voice that it has not heard: full, LoRA, decoder alone, each with and without replay.

    python benchmarks/finetune_voice.py runs/quickstart/export runs/demo-data --minutes 3,10,20
    python benchmarks/finetune_voice.py runs/proving_voices/export data/voices --held-out data/voices_test_sentence \
        --experiment proving_desk --voice rms --shifts 4 --steps 200 --lines 60 \
        tokenizer.path=corpora/voices/tokenizer data.num_workers=0

The new voice is one of the program flite (or espeak-ng, with `--program espeak-ng`), which reads lines of the base's
dataset, and joined pairs of them where they do not make `--minutes` of audio. Lines that are judged were never said by
the new voice in training: those of `--held-out`, or every fifth of the base's own, which it can say in its own voices.
The new voice is speaker 2, which must not be one of the base's. Words at the end are options of train.py for all arms.

Prints for each arm, and for the base before it:

new        cosine of speaker embeddings of generated speech and the new voice's recordings after the codec
old        the same with the nearest of the base's voices: below `new` where the voice was learned
WER        word errors of the held-out lines in the new voice, with the 95 % interval of a bootstrap over lines, and of
           the recordings after the codec for comparison
own lines  WER of lines by the base's speakers and their cosine with the speaker's own voice: what is forgotten. Lines
           that they said in training, or the held-out ones with `--held-out`
ended      share of all these turns that the model ended itself
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections import defaultdict
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
from csm.evaluation.statistics import compare_ratios, estimate_ratio
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import WordErrors, align_words, count_errors
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

    def errors(self, lines: list[Line], audios: list[Tensor], rate: int) -> list[WordErrors]:
        """Word errors of each line."""
        heard = [self.recognizer.transcribe(audio, rate) if len(audio) else "" for audio in audios]
        return [
            count_errors(align_words(self.normalizer(text), self.normalizer(words)))
            for (text, _), words in zip(lines, heard, strict=True)
        ]

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
    turns: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for number in dataset.select(split)[:limit]:
        sample = dataset.read(int(number))
        for turn in sample.turns:
            turns[turn.speaker].setdefault(turn.text, torch.from_numpy(sample.turn_codes(turn)))
    return dict(sorted(turns.items()))


Line = tuple[str, int]
"""A text and the base's speaker who says it in the dataset."""


def speak(generator: Generator, lines: list[Line]) -> tuple[list[Tensor], int]:
    """(greedy speech of each line, how many turns the model ended)."""
    turns = generator.generate_batch([SpeechRequest(*line, (), 12_000, temperature=0) for line in lines])
    return [turn.audio for turn in turns], sum(turn.finish_reason == "stop" for turn in turns)


def interval(errors: list[WordErrors]) -> str:
    counts = [one.errors for one in errors], [one.reference_words for one in errors]
    found = estimate_ratio(*counts, [str(number) for number in range(len(errors))])
    assert found.low is not None and found.high is not None
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def difference(errors: list[WordErrors], others: list[WordErrors]) -> str:
    """Of two systems on the same lines, in points."""
    left, right = (([one.errors for one in side], [one.reference_words for one in side]) for side in (errors, others))
    found = compare_ratios(left, right, [str(number) for number in range(len(errors))])
    assert found.low is not None and found.high is not None
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def score(
    name: str,
    model: Path,
    judges: Judges,
    held: list[Line],
    own: list[Line],
    voices: dict[int, Tensor],
    base: list[WordErrors] | None,
) -> list[WordErrors]:
    """Prints a row. base: word errors of the base's own voices on the held-out lines; None: `model` is the base."""
    generator = load_generator(model, "cpu", torch.float32)
    rate = generator.sample_rate
    new, ended_new = speak(generator, [(text, NEW) for text, _ in held])
    said, ended_own = speak(generator, own)
    nearest = max(judges.similarity(new, voice, rate) for speaker, voice in voices.items() if speaker != NEW)
    kept = [judges.similarity([audio], voices[speaker], rate) for audio, (_, speaker) in zip(said, own, strict=True)]
    errors, own_errors = judges.errors(held, new, rate), judges.errors(own, said, rate)
    if base is None:
        base = own_errors if held == own else judges.errors(held, speak(generator, held)[0], rate)
    print(
        f"{name:34s} new {judges.similarity(new, voices[NEW], rate):.3f}  old {nearest:.3f}  "
        f"WER {interval(errors)}, minus the base's own {difference(errors, base)}   own lines: "
        f"WER {interval(own_errors)}, voice {sum(kept) / len(kept):.3f}   "
        f"ended {(ended_new + ended_own) / (len(new) + len(said)):.0%}",
        flush=True,
    )
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="model directory with a spectral codec, such as runs/quickstart/export")
    parser.add_argument("data", help="its dataset, such as runs/demo-data")
    parser.add_argument("--minutes", default="3", help="of the new voice, separated by commas")
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    parser.add_argument("--replay", default="0,0.3", help="shares of the base's data in the rows, separated by commas")
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
    if NEW in turns:
        parser.error(f"{arguments.data}: speaker {NEW} is one of the base's; it is to be the new voice's id")
    lines = [(text, speaker) for speaker, found in turns.items() for text in found]
    if arguments.held_out:
        taught = [text for text, _ in lines]
        unheard = read_turns(arguments.held_out, "val")
        said = [(text, speaker) for speaker, found in unheard.items() for text in found]
        held = own = random.Random(0).sample(said, arguments.lines)
    else:
        taught = [text for number, (text, _) in enumerate(lines) if number % HELD_OUT]
        held, own = lines[::HELD_OUT][: arguments.lines], lines[1::HELD_OUT][: arguments.lines]

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
        for number, (text, _) in enumerate(held):
            path = Path(scratch) / f"held-{number}.wav"
            record(arguments.program, arguments.voice, text, path)
            audio = load_audio(path, rate)
            recorded.append(codec.decode(codec.encode(audio[None, None]))[0, 0])
        voices[NEW] = judges.voice(recorded, rate)
        cosines = ", ".join(f"{float(voices[NEW] @ voices[speaker]):.3f} with {speaker}" for speaker in turns)
        like_itself = judges.similarity(recorded, voices[NEW], rate)
        print(
            f"{arguments.program} {arguments.voice}: recordings after the codec WER "
            f"{interval(judges.errors(held, recorded, rate))}, cosine {like_itself:.3f}; "
            f"cosine of the voices {cosines}",
            flush=True,
        )
        own_errors = score("base", Path(arguments.base), judges, held, own, voices, None)
        for minutes in map(float, arguments.minutes.split(",")):
            folder = Path(scratch) / f"new-{minutes:g}"
            made = make_dataset(folder, taught, minutes, codec, arguments)
            for arm in arguments.arms.split(","):
                for replay in map(float, arguments.replay.split(",")):
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
                    score(f"{name} ({seconds:.0f} s)", run / "export", judges, held, own, voices, own_errors)


if __name__ == "__main__":
    main()
