"""Planted faults of the labels are named at the start of training, and right labels are not."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csm.data.dataset import ShardedDataset
from csm.frames import Frames
from csm.stability.labels import SHIFTS, batch_faults, layout_faults, shift_faults, silent_seconds
from csm.training.build import train
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.data.made_datasets import write_dataset
from tests.data.test_rows import train_steps
from tests.tiny import CODEBOOK_SIZE, K, conversation, inputs, rows, tiny_model

LENGTHS = [(12, 19), (13,), (22, 12, 15), (14, 14)]
RATE = 12.5


def batch(documents: list[Frames]):
    return rows([[document] for document in documents], 96)


def right() -> list[Frames]:
    return [conversation(i, lengths) for i, lengths in enumerate(LENGTHS)]


def without_ends(document: Frames) -> Frames:
    kept = ~document.eos
    return Frames(document.tokens[kept], document.mask[kept], document.targets[kept], document.eos[kept])


def test_right_labels_have_no_faults(small_dataset):
    assert batch_faults([batch(right())], RATE) == []
    context = conversation(1, (12, 13), loss=(False, True))  # a turn that is context is predicted nowhere
    assert layout_faults(batch([context])) == []
    steps = train_steps(
        ShardedDataset(small_dataset), max_epochs=1, text_dropout=0.3, context_dropout=0.3, frame_dropout=0.3
    )
    for step in steps:
        assert batch_faults(step.microbatches, RATE) == [], step.keys


def test_missing_ends_are_named():
    (fault,) = layout_faults(batch([without_ends(document) for document in right()]))
    assert fault.startswith("8 of 8 turns have no end-of-speech frame")


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_labels_are_named(shift):
    shifted = [replace(document, targets=document.targets.roll(shift)) for document in right()]
    (fault,) = layout_faults(batch(shifted))
    assert fault.startswith("labels look shifted: 8 of 8 turns are predicted in part, and 8 predicted")


def test_texts_after_their_frames_and_batches_without_labels_are_named():
    document = conversation(1, (12,))
    turned = Frames(*(torch.cat((part[4:], part[:4])) for part in vars(document).values()))
    assert layout_faults(batch([turned])) == ["in 1 of 1 turns no text ends right before the first frame"]
    (fault,) = layout_faults(batch([conversation(1, (12,), loss=(False,))]))
    assert fault.startswith("no frame is predicted: data.loss_turns")


@pytest.mark.parametrize("seconds", [0.0, 0.4, 2.0, 4.0])
def test_silence_after_turns_is_measured_in_codes(seconds):
    """Speech of 1 to 4 s over 40 codes, then silence that changes between three codes, with the odd click."""
    generator = np.random.default_rng(3)
    turns, frames = [], round(seconds * RATE)
    for _ in range(30):
        speech = generator.integers(0, 40, generator.integers(13, 50))
        silence = np.where(generator.random(frames) < 0.9, generator.integers(40, 43, frames), 7)
        turns.append(torch.from_numpy(np.concatenate((speech, silence))))
    # A fifth of the frames may be other codes, so speech before the silence lengthens it.
    assert seconds - 0.1 <= silent_seconds(turns, RATE) <= 1.3 * seconds + 0.25
    assert silent_seconds(turns[:7], RATE) == 0.0, "too few turns for a verdict"


def test_a_model_that_learned_shifted_labels_is_named():
    """And one that learned the right ones is not, nor one that learned nothing."""
    document = conversation(1, (30,), codebooks=K)
    packed = rows([[document]], 40)
    arguments = {name: value for name, value in inputs(packed).items() if not name.startswith("slot")}

    def faults(model) -> list[str]:
        with torch.no_grad():
            sums, counts = model.shifted_losses(**arguments, shifts=SHIFTS)
        assert torch.equal(counts, torch.full((3,), 29.0))  # 31 with the end; the first and the last lack a neighbor
        return shift_faults((sums / counts).tolist(), CODEBOOK_SIZE + 3)

    assert faults(tiny_model(1)) == []
    for shift in (0, 1):
        model = tiny_model(1)
        optimizer = torch.optim.Adam([*model.backbone.parameters(), *model.codebook0_head.parameters()], 5e-3)
        for _ in range(35):
            states = model.backbone_states(packed.tokens, packed.mask, packed.positions)[0, 3:33]
            loss = F.cross_entropy(model.codebook0_head(states), packed.tokens[0, 4 + shift : 34 + shift, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.5
        found = faults(model)
        assert (found == []) == (shift == 0), found
        assert shift == 0 or found[0].startswith("the model that training starts from predicts the frames at +1 better")


@pytest.mark.slow
def test_training_says_so_at_its_start(small_dataset, tmp_path, caplog):
    """2 s of silence in codes after every turn of a dataset that is right otherwise."""
    source = ShardedDataset(small_dataset)
    samples = []
    for number in range(len(source)):
        sample, parts, frame = source.read(number), [], 0
        for turn in sample.turns:
            parts.append(np.pad(sample.turn_codes(turn), ((0, 0), (0, 25)), constant_values=3))
            turn.start_frame, turn.num_frames = frame, parts[-1].shape[1]
            frame += turn.num_frames
        samples.append(replace(sample, codes=np.concatenate(parts, axis=1).astype(np.uint16)))
    planted = write_dataset(tmp_path / "data", samples)
    words = [
        f"codec.path={small_dataset / 'codec.safetensors'}",
        "trainer.max_steps=1",
        "trainer.val_every_steps=0",
        "data.max_seq_len=640",
        "model.max_seq_len=640",
    ]
    with caplog.at_level(logging.WARNING):
        train(compose_train([*TINY_OVERRIDES, *words, f"data.path={planted}", f"run_dir={tmp_path / 'run'}"]))
    (warning,) = [record.message for record in caplog.records if "labels of the first batch" in record.message]
    assert "go on for 2" in warning and "trim_given_seconds" in warning
