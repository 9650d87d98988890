"""A training run that is watched from outside and may be given bad batches, and the same steps done by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from csm.config import TrainConfig
from csm.data.packing import RowBatch, StepBatch
from csm.model.csm import CSM
from csm.model.loss import LossSums
from csm.training.module import CSMTrainingModule
from csm.training.optim import build_optimizer, lr_factor
from csm.training.train import TrainingLoop
from tests.tiny import forward


@dataclass
class Recording:
    """weights: of the model before the first step and after every step; batches and random states: of every step;
    validated: the batches of all validations."""

    weights: list[dict[str, Tensor]] = field(default_factory=list)
    batches: list[StepBatch] = field(default_factory=list)
    random_states: list[Tensor] = field(default_factory=list)
    validated: list[RowBatch] = field(default_factory=list)


@contextmanager
def recorded(bad_steps: tuple[int, ...] = ()) -> Iterator[Recording]:
    """Records the training inside the block. bad_steps (from 1): their slot weights are made NaN."""
    recording, step_of = Recording(), TrainingLoop.take_step
    validation_of = CSMTrainingModule.validation_step

    def take_step(self, batch):
        model = self.module.model
        if not recording.weights:
            recording.weights.append(copy.deepcopy(model.state_dict()))
        recording.batches.append(copy.deepcopy(batch))
        recording.random_states.append(torch.get_rng_state())
        if self.step + 1 in bad_steps:
            batch.microbatches[0].slot_weights.fill_(math.nan)
        step_of(self, batch)
        recording.weights.append(copy.deepcopy(model.state_dict()))

    def validation_step(self, rows, engine, num_slots):
        recording.validated.append(rows)
        return validation_of(self, rows, engine, num_slots)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CSMTrainingModule, "validation_step", validation_step)
        patch.setattr(TrainingLoop, "take_step", take_step)
        yield recording


@dataclass
class Step:
    """The result of one optimizer step: sums of its microbatches, gradient norms, the weights after it."""

    sums: Tensor  # LossSums.stacked
    norms: dict[str, float]
    weights: dict[str, Tensor]
    optimizer: dict


def by_hand(config: TrainConfig, recording: Recording, left_out: tuple[int, ...] = ()) -> dict[int, Step]:
    """The recorded batches trained on in a plain loop, without the steps `left_out` (from 1)."""
    model = CSM(config.model)
    model.load_state_dict(recording.weights[0])
    optimizer = build_optimizer(model, config.optim)
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = {}
    for number, batch in enumerate(recording.batches, start=1):
        if number in left_out:
            continue
        sums = [forward(model, rows) for rows in batch.microbatches]
        (sum(part.loss(config.loss, batch.frames) for part in sums)).backward()
        norms = {part: _norm(model, part) for part in ("backbone", "decoder", "embeddings", "")}
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * lr_factor(number - 1, config.optim, config.trainer.max_steps)
        optimizer.step()
        optimizer.zero_grad()
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        steps[number] = Step(sum(part.stacked() for part in sums), norms, *state)
    return steps


def _norm(model: CSM, part: str) -> float:
    """Of the gradients of one part; "": of all."""
    squares = 0.0
    for name, parameter in model.named_parameters():
        owner = "embeddings" if "embeddings" in name else "backbone" if name.startswith("backbone") else "decoder"
        if part in ("", owner):
            squares += float(parameter.grad.double().square().sum())
    return math.sqrt(squares)


def interval_sums(steps: list[Step]) -> LossSums:
    return LossSums.from_stacked(sum(step.sums.double() for step in steps))
