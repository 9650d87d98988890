"""Turns that are spoken as audio samples: which ones, and with how much of their context."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample, Turn
from csm.data.sources import Source
from csm.text import ByteTokenizer
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.sample_prompts import choose_prompts
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.data.made_datasets import CODEC, made_sample, write_dataset

TOKENIZER = ByteTokenizer()


def said(number: int, *turns: tuple[int, str, int, bool], source: str = "made", split: str = "val") -> Sample:
    """A conversation of turns (speaker, text, frames, loss)."""
    stored, frame = [], 0
    for start, (speaker, text, frames, loss) in enumerate(turns):
        stored.append(Turn(speaker, text, float(start), start + 0.9, frame, frames, loss))
        frame += frames
    codes = np.random.default_rng(number).integers(1, CODEC.codebook_size, (CODEC.num_codebooks, frame))
    base = made_sample(number, split, source)
    return replace(base, turns=stored, codes=codes.astype(np.uint16))


def source_of(folder, samples: list[Sample], weight: float = 1.0, final_weight: float | None = None) -> Source:
    return Source(ShardedDataset(write_dataset(folder, samples)), weight, None, final_weight)


def options(*words: str):
    return compose_train([*TINY_OVERRIDES, "data.path=x", "trainer.sample_every_steps=3", *words])


@pytest.mark.parametrize(
    ("loss_turns", "spoken"),
    [
        ("all", {0: "b2", 1: "a1", 3: "a1"}),
        ("speaker:0", {0: "a2", 1: "a1", 3: "a1"}),
        ("speaker:1", {0: "b2"}),
        ("last", {0: "b2", 3: "a1"}),
    ],
)
def test_the_last_turn_that_is_trained_on_is_spoken(loss_turns, spoken, tmp_path):
    """The turns of a conversation that no row holds, and those that are context in the dataset, are not spoken."""
    stored = [
        said(0, (0, "a1", 9, True), (1, "b1", 8, True), (0, "a2", 7, True), (1, "b2", 6, True)),
        said(1, (0, "a1", 9, True), (1, "b1", 8, False)),
        said(2, (0, "a1", 9, False), (1, "b1", 8, False)),
        said(3, (0, "a1", 9, True), (1, "b1", 400, True)),
    ]
    sources = {"data": source_of(tmp_path / "data", stored)}
    words = (f"data.loss_turns={loss_turns}", "trainer.sample_prompts=4", "model.max_seq_len=1024")
    prompts = choose_prompts(sources, TOKENIZER, options(*words))
    by_key = {sample.key: (number, sample) for number, sample in enumerate(stored)}
    found = {}
    for prompt in prompts:
        key, place = prompt.name.rsplit("-", 1)
        number, sample = by_key[key]
        turn = sample.turns[int(place)]
        found[number] = prompt.turn.text
        assert turn.text == prompt.turn.text and torch.from_numpy(sample.turn_codes(turn)).equal(prompt.codes)
        assert [(part.speaker, part.text) for part in prompt.context] == [
            (before.speaker, before.text) for before in sample.turns[: int(place)]
        ]
    assert found == spoken


def test_no_turn_that_is_trained_on_is_said_at_the_start(tmp_path, caplog):
    sources = {"data": source_of(tmp_path / "data", [said(0, (1, "b1", 8, True))])}
    assert choose_prompts(sources, TOKENIZER, options("data.loss_turns=speaker:0")) == []
    assert caplog.messages == ["no audio samples: data.loss_turns=speaker:0 trains on no turn of split 'val'"]


@pytest.mark.parametrize(
    ("weights", "count", "spoken"),
    [
        ({"calls": (1, None), "books": (1, None)}, 4, ["calls", "books", "calls", "books"]),
        ({"mine": (4, None), "base": (1, None)}, 5, ["mine", "mine", "base", "mine", "mine"]),
        ({"books": (9, 1), "calls": (1, 9)}, 2, ["calls", "calls"]),  # from monologues to dialogues
        ({"mine": (1, None), "silent": (9, None)}, 2, ["mine", "mine"]),  # without a split "val"
        ({"mine": (1, None), "large": (1, None)}, 20, ["mine", "large"] * 7),  # there are no more
    ],
)
def test_sources_are_spoken_by_their_weights(weights, count, spoken, tmp_path):
    sources = {}
    for name, (weight, final) in weights.items():
        split = "train" if name == "silent" else "val"
        samples = [said(number, (0, name, 9, True), split=split) for number in range(7)]
        sources[name] = source_of(tmp_path / name, samples, weight, final)
    prompts = choose_prompts(sources, TOKENIZER, options(f"trainer.sample_prompts={count}"))
    assert [prompt.turn.text for prompt in prompts] == spoken
    assert len({prompt.name for prompt in prompts}) == len(prompts)  # keys are unique in their dataset alone
    assert all(prompt.name.startswith(f"{prompt.turn.text}-") for prompt in prompts)


def test_the_oldest_turns_make_room_for_twice_the_recording(tmp_path, caplog):
    """Text takes its letters, two ends and "[0]". The engine keeps one position free."""
    stored = [said(0, (0, "old", 20, True), (1, "new", 20, True), (0, "now", 40, True))]
    sources = {"data": source_of(tmp_path / "data", stored)}
    last, before = 8 + 105 + 1, 8 + 20 + 1
    for positions, context, frames in [
        (last + 2 * before, ["old", "new"], 105),
        (last + 2 * before - 1, ["new"], 105),
        (last + before - 1, [], 105),
        (last - 1, [], 104),
    ]:
        caplog.clear()
        (prompt,) = choose_prompts(
            sources, TOKENIZER, options(f"model.max_seq_len={positions}", f"data.max_seq_len={positions}")
        )
        assert ([part.text for part in prompt.context], prompt.max_frames) == (context, frames)
        told, gone = " ".join(caplog.messages), 2 - len(context)
        assert (f"1 of 1 audio samples are spoken without the oldest turns of their context, {gone} turns" in told) == (
            gone > 0
        )
        assert ("ended before twice" in told) == (frames < 105)


@pytest.mark.slow
def test_conversations_that_fill_a_row_are_spoken_and_training_goes_on(small_dataset, tiny_overrides, tmp_path, caplog):
    """The model has as many positions as the longest conversation: there is no room for it and a slow reading."""
    dataset = ShardedDataset(small_dataset)
    samples = [dataset.read(int(number)) for number in dataset.select("val")]
    lengths = [sum(len(TOKENIZER.encode_turn(t.text, t.speaker)) + t.num_frames + 1 for t in s.turns) for s in samples]
    words = [f"model.max_seq_len={max(lengths)}", f"data.max_seq_len={max(lengths)}", "trainer.sample_every_steps=1"]
    words += [f"trainer.sample_prompts={len(samples)}", "trainer.max_steps=2", "trainer.val_every_steps=1"]
    with caplog.at_level(logging.INFO):
        train(compose_train([*tiny_overrides, *words]))
    lines = read_lines(tmp_path / "run" / "samples" / "samples.jsonl")
    assert [line["step"] for line in lines] == [1] * len(samples) + [2] * len(samples)
    longest = int(np.argmax(lengths))
    assert lines[longest]["context_turns"] < len(samples[longest].turns) - 1
    assert sum("spoken without the oldest turns" in message for message in caplog.messages) == 1
