"""Held-out losses of a trained model by conversation: teacher-forced, every frame, whatever the run's loss weights."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from csm.arrangement import arranged, by_frame
from csm.data.dataset import ShardedDataset
from csm.data.packing import pack_row, stack_rows
from csm.data.rows import only_last, sample_turns
from csm.data.sample import Sample
from csm.frames import Frames, conversation_frames
from csm.model.loss import frame_chunks, join, join_chunks
from csm.model.speech_lm import SpeechLM
from csm.text import TextTokenizer
from experiments.arms.experiment import View

SPLIT = "val"
CHUNK = 128  # frames in the depth decoder at a time
COMMON = 8  # first codebooks, which models of fewer codebooks predict too


@dataclass(frozen=True)
class Item:
    """Sums over the predicted frames of one conversation.

    cluster: conversations of one name resemble each other (`Sample.group`)
    codes:   checksum of the frames' first codebooks: arms are compared on equal ones only
    nats:    by group of codebooks, the sum over frames of the mean over its codebooks
    """

    cluster: str
    frames: int
    codes: int
    nats: dict[str, float]


@torch.inference_mode()
def score(
    model: SpeechLM, dataset: ShardedDataset, tokenizer: TextTokenizer, limit: int, view: View
) -> dict[str, Item]:
    """Scores of all validation conversations by key. Raises ValueError if there are fewer than two.

    limit: positions that the model was trained with; of a longer conversation the leading turns are scored
    """
    model.eval()
    items = {}
    for index in dataset.select(SPLIT):
        sample = dataset.read(int(index))
        item = _item(model, sample, _documents(model, sample, tokenizer, limit, view))
        if item.frames:
            items[sample.key] = item
    if len({item.cluster for item in items.values()}) < 2:
        raise ValueError(f"{dataset.path}: an experiment needs two conversations or more in split {SPLIT!r}")
    return items


def _documents(model: SpeechLM, sample: Sample, tokenizer: TextTokenizer, limit: int, view: View) -> list[Frames]:
    without_text = np.full(len(sample.turns), view is View.no_text)
    layout = model.config.layout
    turns = sample_turns(sample, tokenizer, limit, without_text=without_text, layout=layout)
    if view is View.last:
        turns = only_last(turns)
    parts = [[turn] for turn in turns] if view is View.no_context else [turns]
    return [arranged(conversation_frames(part, model.config.num_codebooks), layout) for part in parts]


def _item(model: SpeechLM, sample: Sample, documents: list[Frames]) -> Item:
    length = sum(map(len, documents))
    row = pack_row(documents, length, model.config.num_codebooks, length, np.random.default_rng(0))
    row = stack_rows([row])  # without the slots of text positions
    mask = row.attention_mask()
    backbone, frames = model.backbone_losses(
        row.tokens, row.mask, row.positions, row.targets, row.slots, row.slot_weights, mask
    )
    chunks = [model.decoder_losses(chunk) for chunk in frame_chunks(frames, CHUNK)]
    losses = join(backbone, join_chunks(chunks, len(frames.weights))).losses.double()  # [K]
    means = {"c0": losses[0], "c1-7": losses[1:COMMON].mean(), "others": losses[1:].mean()}
    codes = by_frame(row.tokens[0, :, :-1], model.config.layout)
    predicted = codes[row.targets[0, : len(codes)]][:, :COMMON].contiguous().numpy()
    return Item(
        sample.group,
        int(row.targets.sum()),
        zlib.crc32(predicted.tobytes()),
        {group: round(float(nats), 4) for group, nats in means.items()},
    )
