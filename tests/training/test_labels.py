"""Planted faults of the labels are named at the start of training or at a validation, and right labels are not."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.data.dataset import ShardedDataset
from csm.data.packing import RowBatch
from csm.frames import Frames
from csm.model.backward import LocalEngine
from csm.stability.labels import SHIFTS, LabelLosses, batch_faults, later_halves, layout_faults, silent_seconds
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.module import CSMTrainingModule
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.data.made_datasets import write_dataset
from tests.data.test_rows import train_steps
from tests.tiny import CODEBOOK_SIZE, K, conversation, inputs, rows, tiny_model
from tests.training.recorded import recorded

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

    def found(model) -> LabelLosses:
        with torch.no_grad():
            losses, usable = model.shifted_losses(**arguments, shifts=SHIFTS)
        assert usable.sum() == 29  # 31 with the end; the first and the last lack a neighbor
        return LabelLosses((losses.sum((1, 2)) / 29).tolist(), (1.0, 1.0))

    assert found(tiny_model(1)).faults(CODEBOOK_SIZE + 3) == {}
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
        losses = found(model)
        faults = losses.faults(CODEBOOK_SIZE + 3)
        assert list(faults) == ["shift"] * shift, faults
        assert losses.metrics()["val/shift_gain"] * (1 if shift else -1) > 2, losses
        assert shift == 0 or faults["shift"].startswith("the model predicts the frames at +1 better")


def test_halves_are_of_the_predicted_frames_of_each_document():
    documents = [conversation(0, (4, 3)), conversation(1, (6,)), conversation(2, (5,), loss=(False,))]
    packed = rows([documents], 96)
    later = later_halves(packed)[0]
    for number, frames in enumerate([9, 7, 0]):  # predicted, ends included
        inside = packed.documents[0] == number
        predicted = torch.nonzero(inside & packed.targets[0]).flatten()
        assert len(predicted) == frames
        first = int(predicted[frames // 2]) if frames else 96
        assert torch.equal(inside & later, inside & (torch.arange(96) >= first))
    assert not later[packed.documents[0] < 0].any()


def whole_documents(batch: RowBatch) -> Tensor:
    return (batch.documents[:, :, None] == batch.documents[:, None, :])[:, None]


def one_ahead(batch: RowBatch) -> Tensor:
    length = batch.documents.shape[1]
    return whole_documents(batch) & torch.ones(length, length, dtype=torch.bool).tril(1)


@pytest.mark.parametrize("mask", [None, whole_documents, one_ahead])
def test_what_comes_later_changes_nothing_unless_it_is_seen(mask, monkeypatch):
    """Also where the conversations of a row end before its middle."""
    model = tiny_model(1)
    module = CSMTrainingModule(compose_train([*TINY_OVERRIDES, "data.path=x"]), model).eval()
    packed = rows([[conversation(0, (8,)), conversation(1, (6, 5))], []], 128)
    assert packed.documents[0, 64:].max() < 0
    if mask is not None:
        monkeypatch.setattr(RowBatch, "attention_mask", mask)
    sums = module.label_sums(packed, LocalEngine(model))
    losses = LabelLosses.from_stacked(sums)
    assert sums[len(SHIFTS)] == 7 + 5 + 4  # of 9, 7 and 6 with the ends, those with neighbors
    if mask is None:
        assert losses.metrics()["val/leak"] == 0 and "leak" not in losses.faults(CODEBOOK_SIZE + 3)
        expected = model.shifted_losses(
            packed.tokens, packed.mask, packed.positions, packed.targets, SHIFTS, packed.attention_mask()
        )[0].sum((1, 2))
        assert losses.shifted == pytest.approx((expected / 16).tolist())
    else:
        assert losses.metrics()["val/leak"] > 0.01
        assert losses.faults(CODEBOOK_SIZE + 3)["leak"].endswith("%; look at the attention mask")


def test_batches_without_frames_have_no_faults():
    losses = LabelLosses.from_stacked(torch.zeros(len(SHIFTS) + 3))
    assert all(math.isnan(value) for value in losses.metrics().values()) and losses.faults(16) == {}


def planted_sums(*of: tuple[float, float]) -> Callable[..., Tensor]:
    """`CSMTrainingModule.label_sums` of 10 frames that has, one after another, these losses at +1 and changes by what
    comes later."""
    values = iter(of)

    def label_sums(self, rows, engine):
        after, change = next(values)
        return torch.tensor([25.0, 20.0, 10 * after, 10.0, 9.0, 9.0 * (1 + change)])

    return label_sums


@pytest.mark.slow
def test_validations_log_both_and_warn_once_also_beyond_a_resume(tiny_overrides, tmp_path, monkeypatch, caplog):
    words = [*tiny_overrides, "trainer.val_every_steps=2", "ckpt_path=last"]
    losses = (
        (1.95, 0.0),
        (1.5, 0.0),
        (1.0, 0.0),
        (1.0, 0.0),
        (1.0, -0.25),
    )  # the third: of the start of the second run
    monkeypatch.setattr(CSMTrainingModule, "label_sums", planted_sums(*losses))
    for steps in (4, 8):
        train(compose_train([*words, f"trainer.max_steps={steps}"]))
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "val/loss" in line]
    assert [line["val/shift_gain"] for line in lines] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert [line["val/leak"] for line in lines] == [0, 0, 0, 0.25]
    shift, leak = [message for message in caplog.messages if message.startswith("validation of step")]
    assert shift.startswith(
        "validation of step 4: the model predicts the frames at +1 better than those of the labels (1.5"
    )
    assert leak.startswith("validation of step 8: the model sees what it is to predict") and "by 25%" in leak
    (again,) = [message for message in caplog.messages if message.startswith("labels of the first batch")]
    assert "at +1 better" in again


@pytest.mark.slow
def test_validations_of_labels_leave_training_as_it_is(tiny_overrides, tmp_path, monkeypatch):
    """Bit for bit: weights, and the random states from which the steps after a validation begin."""
    words = [*tiny_overrides, "trainer.max_steps=4", "trainer.val_every_steps=1", "data.num_workers=0"]
    with recorded() as checked:
        train(compose_train([*words, f"run_dir={tmp_path / 'checked'}"]))
    monkeypatch.setattr(CSMTrainingModule, "label_sums", planted_sums(*[(2.0, 0.0)] * 4))
    with recorded() as unchecked:
        train(compose_train([*words, f"run_dir={tmp_path / 'unchecked'}"]))
    assert len(checked.weights) == 5
    for ours, theirs in zip(checked.weights, unchecked.weights, strict=True):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert all(map(torch.equal, checked.random_states, unchecked.random_states))


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
