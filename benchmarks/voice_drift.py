"""Drift of a voice over a conversation: similarity of every turn to the reference, with the oldest turns dropped.

    python benchmarks/voice_drift.py runs/quickstart/export runs/demo-data
    python benchmarks/voice_drift.py MODEL DATASET --speaker 0 --turns 20 --positions 1024 --conversations 8

One speaker says `--turns` texts of the dataset in a row, in a conversation that holds `--positions` positions, once
with the voice pinned and once with the same reference turns as ordinary context, which are dropped like all others.
The reference is what the voice holds: turns of the speaker in the dataset. Prints the mean cosine of speaker embeddings
with the reference by turn, its 95 % interval over the conversations (which differ in their seed and texts), the
difference between the last turn and the second, and how many turns the model ended by itself.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from csm.config import SpeakerKind
from csm.data.dataset import ShardedDataset
from csm.formats.open import open_checkpoint
from csm.inference.conversation import Conversation
from csm.inference.generator import Generator
from csm.inference.voice import Voice
from csm.judges.speaker import SpeakerEmbedder, cosine, load_embedder


def lines_of(dataset: ShardedDataset, speaker: int) -> list[tuple[str, Tensor]]:
    """(text, codes [K, T]) of all turns of a stored speaker id."""
    found = []
    for number in range(len(dataset)):
        sample = dataset.read(number)
        found += [
            (turn.text, torch.from_numpy(sample.turn_codes(turn))) for turn in sample.turns if turn.speaker == speaker
        ]
    return found


def conversation(
    generator: Generator, voice: Voice, pinned: bool, texts: list[str], speaker: int, seed: int, temperature: float
) -> tuple[list[Tensor], int, int]:
    """(audio of each turn, turns that the model ended, turns that were dropped)."""
    segments = voice.segments(generator, speaker)
    options = {"temperature": temperature, "max_audio_length_ms": 8000}
    talk = Conversation(generator, segments if pinned else [], **options)
    if not pinned:
        for segment in segments:
            talk.hear(segment)
    audios, ended, said = [], 0, 0
    for number, text in enumerate(texts):
        turn = talk.say(text, speaker, seed=1000 * seed + number)
        audios.append(turn.audio)
        ended += turn.finish_reason == "stop"
        said += turn.frames > 0 or turn.finish_reason == "stop"
    return audios, ended, len(segments) + said - len(talk.turns)


def similarities(audios: list[Tensor], reference: Tensor, embedder: SpeakerEmbedder, rate: int) -> list[float]:
    voices = [embedder.embed(audio, rate) if len(audio) else None for audio in audios]
    return [float("nan") if voice is None else cosine(voice, reference) for voice in voices]


def interval(values: Tensor) -> str:
    """Mean and half of the 95 % interval of values [n]; turns without enough speech are NaN and left out."""
    values = values[~values.isnan()]
    half = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{float(values.mean()):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--speaker", type=int, default=0)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--positions", type=int, default=512, help="of the conversation; the oldest turns are dropped")
    parser.add_argument("--conversations", type=int, default=4)
    parser.add_argument("--reference-turns", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--encoder", choices=[kind.value for kind in SpeakerKind], default="resemblyzer")
    arguments = parser.parse_args()

    checkpoint = open_checkpoint(arguments.model)
    model = checkpoint.load_model("cpu", None)
    model.config = replace(model.config, max_seq_len=arguments.positions)
    generator = Generator(model, checkpoint.read_codec("cpu"), checkpoint.read_tokenizer(), slots=1)
    embedder, rate = load_embedder(SpeakerKind(arguments.encoder), None, "cpu"), generator.sample_rate
    lines = lines_of(ShardedDataset(arguments.dataset), arguments.speaker)
    chosen, spoken = lines[: arguments.reference_turns], lines[arguments.reference_turns :]
    voice = Voice("reference", [text for text, _ in chosen], [codes for _, codes in chosen], generator.codec.info)
    audio = torch.cat([generator.codec.decode(codes[None])[0, 0] for codes in voice.codes])
    reference = embedder.embed(audio, rate)
    if reference is None:
        raise SystemExit("the reference turns hold too little speech: raise --reference-turns")
    held_out = [similarities([generator.codec.decode(c[None])[0, 0]], reference, embedder, rate)[0] for _, c in spoken]
    print(f"reference {voice.seconds:.1f} s; other turns of the speaker {interval(torch.tensor(held_out))}")

    turns = arguments.turns
    for pinned in (True, False):
        table, ended, dropped = [], 0, 0
        for seed in range(arguments.conversations):
            order = torch.randperm(len(spoken), generator=torch.Generator().manual_seed(seed)).tolist()
            texts = [spoken[order[number % len(order)]][0] for number in range(turns)]
            said, stopped, gone = conversation(
                generator, voice, pinned, texts, arguments.speaker, seed, arguments.temperature
            )
            table.append(similarities(said, reference, embedder, rate))
            ended, dropped = ended + stopped, dropped + gone
        scores = torch.tensor(table)  # [conversations, turns]
        shown = sorted({2, 5, 10, 15, turns} & set(range(1, turns + 1)))
        print(f"{'pinned' if pinned else 'ordinary context':17s}", end="")
        print("".join(f"  turn {turn}: {interval(scores[:, turn - 1])}" for turn in shown))
        print(
            f"{'':17s}  turn {turns} - turn 2: {interval(scores[:, -1] - scores[:, 1])}; last half - first half: "
            f"{interval(scores[:, turns // 2 :].nanmean(1) - scores[:, : turns // 2].nanmean(1))}; "
            f"{ended} of {scores.numel()} turns ended by the model, {dropped / len(table):.1f} dropped a conversation"
        )


if __name__ == "__main__":
    main()
