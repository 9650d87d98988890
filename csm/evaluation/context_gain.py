"""The gain from context: what a true context saves of the loss of a conversation's last turn.

The loss of the turn when its context is taken away or made wrong, minus the loss with the true one, on the same frames:
a model that ignores context gains nothing. Two controls belong to it. A context of another conversation tells what
having any speech before is worth; exchanged speaker ids tell whether the model knows who said what. Nothing is
generated (csm/evaluation/intrinsic.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch

from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample
from csm.evaluation.intrinsic import codebook_groups, frame_loss, score_documents
from csm.evaluation.statistics import Estimate, estimate_ratio
from csm.frames import TurnTokens, conversation_frames, newest_turns
from csm.model.csm import CSM
from csm.text import TextTokenizer


class Context(Enum):
    """The turns before the last one, as they are or as a control."""

    true = "true context"
    none = "no context"
    shuffled = "context of another conversation"
    swapped = "speaker ids of the context exchanged"


@dataclass(frozen=True)
class ContextItem:
    """The last turn of a conversation under every context.

    losses: by context and by "loss" or group of codebooks, nats summed over the turn's frames
    """

    key: str
    cluster: str
    frames: int
    losses: dict[Context, dict[str, float]]


def context_items(
    model: CSM, dataset: ShardedDataset, split: str, tokenizer: TextTokenizer, max_items: int | None = None
) -> list[ContextItem]:
    """Scores the last turn of conversations of at least two turns, once for each `Context`.

    The oldest turns are left out where a context is too long for the model. The other conversation is the next one of
    another group, and gives as many turns as the conversation itself has, if it has them.

    Raises:
        ValueError: no conversation has a last turn to predict and one before it, or all are of one group.
    """
    samples = []
    for index in dataset.select(split):
        sample = dataset.read(int(index))
        if len(sample.turns) > 1 and sample.turns[-1].loss:
            samples.append(sample)
        if len(samples) == max_items:
            break
    if not samples:
        raise ValueError(f"{dataset.path}: split {split!r} holds no conversation with a turn before a predicted one")
    items = []
    for number, sample in enumerate(samples):
        other = next((s for s in samples[number + 1 :] + samples[:number] if s.group != sample.group), None)
        if other is None:
            raise ValueError(
                f"{dataset.path}: all conversations of split {split!r} are of group {sample.group!r}; a context of "
                "another conversation needs two groups"
            )
        items.append(_context_item(model, sample, other, tokenizer))
    return items


def _context_item(model: CSM, sample: Sample, other: Sample, tokenizer: TextTokenizer) -> ContextItem:
    def tokens(of: Sample, speakers: Callable[[int], int] = int) -> list[TurnTokens]:
        return [
            TurnTokens(
                tokenizer.encode_turn(turn.text, speakers(turn.speaker)), torch.from_numpy(of.turn_codes(turn)), False
            )
            for turn in of.turns
        ]

    exchanged = exchanged_speakers(sample)
    *before, last = tokens(sample)
    last = replace(last, loss=True)
    contexts = {
        Context.true: before,
        Context.none: [],
        Context.shuffled: tokens(other)[-len(before) - 1 : -1],
        Context.swapped: tokens(sample, lambda speaker: exchanged[speaker])[:-1],
    }
    limit, codebooks = model.config.max_seq_len, model.config.num_codebooks
    documents = [conversation_frames([*_fitting(turns, last, limit), last], codebooks) for turns in contexts.values()]
    losses = {}
    for context, scores in zip(contexts, score_documents(model, documents), strict=True):
        groups = {name: scores.nats[:, which].mean(axis=1) for name, which in codebook_groups(codebooks).items()}
        by_name = {"loss": frame_loss(scores.nats), **groups}
        losses[context] = {name: float(nats.sum(dtype=np.float64)) for name, nats in by_name.items()}
    return ContextItem(sample.key, sample.group, last.num_positions - len(last.text), losses)


def exchanged_speakers(sample: Sample) -> dict[int, int]:
    """Each speaker id of a conversation and the next one; of a single speaker, and 0 or 1."""
    ids = sorted({turn.speaker for turn in sample.turns})
    if len(ids) == 1:
        return {ids[0]: 1 if ids[0] == 0 else 0}
    return dict(zip(ids, [*ids[1:], ids[0]], strict=True))


def _fitting(turns: list[TurnTokens], last: TurnTokens, limit: int) -> list[TurnTokens]:
    """The newest of `turns` that fit the model's sequence together with `last`."""
    if last.num_positions > limit:
        raise ValueError(f"a turn of {last.num_positions} positions exceeds the model's {limit}")
    return newest_turns(turns, limit - last.num_positions)


def context_gain(
    items: Sequence[ContextItem], control: Context, measure: str = "loss", bootstrap_samples: int = 2000
) -> Estimate:
    """Nats per frame that the true context saves against a control, paired by frame; above 0 it helps.

    measure: "loss" or a group of codebooks
    """
    saved = [item.losses[control][measure] - item.losses[Context.true][measure] for item in items]
    frames, clusters = [float(item.frames) for item in items], [item.cluster for item in items]
    return estimate_ratio(saved, frames, clusters, samples=bootstrap_samples)
