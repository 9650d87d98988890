"""Tiny random models and conversations, every dimension different."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from csm.config import CSMConfig, LossConfig, TransformerConfig
from csm.data.packing import RowBatch, num_slots, pack_row, stack_rows
from csm.frames import Frames, TurnTokens, conversation_frames
from csm.model.backward import LocalEngine, backward_in_chunks
from csm.model.csm import CSM
from csm.model.loss import LossSums

K, CODEBOOK_SIZE, TEXT_VOCAB = 5, 13, 41


def tiny_config(codebooks: int = K) -> CSMConfig:
    return CSMConfig(
        backbone=TransformerConfig(layers=3, dim=48, heads=6, kv_heads=3, ffn_dim=72),
        decoder=TransformerConfig(layers=2, dim=32, heads=4, kv_heads=2, ffn_dim=56),
        text_vocab_size=TEXT_VOCAB,
        codebook_size=CODEBOOK_SIZE,
        num_codebooks=codebooks,
        max_seq_len=160,
    )


def tiny_model(seed: int = 0, codebooks: int = K) -> CSM:
    torch.manual_seed(seed)
    model = CSM(tiny_config(codebooks))
    enlarge_weights(model)
    return model


def enlarge_weights(model: nn.Module) -> None:
    """Draws weights large enough that every input matters to every output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.3)
            else:
                parameter.uniform_(0.5, 1.5)


def conversation(
    seed: int, frame_counts: tuple[int, ...] = (6, 9), loss: tuple[bool, ...] | None = None, codebooks: int = K
) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    turns = []
    for number, count in enumerate(frame_counts):
        text = torch.randint(0, TEXT_VOCAB, (4 + number,), generator=generator).tolist()
        codes = torch.randint(0, CODEBOOK_SIZE, (codebooks, count), generator=generator)
        codes[0].clamp_(min=1)  # no real frame is all zeros
        turns.append(TurnTokens(text, codes, True if loss is None else loss[number]))
    return conversation_frames(turns, codebooks)


def rows(
    documents: list[list[Frames]], max_seq_len: int = 64, ratio: int = 1, seed: int = 0, codebooks: int = K
) -> RowBatch:
    """One packed row for each list of documents."""
    rng = np.random.default_rng(seed)
    slots = num_slots(max_seq_len, ratio) if ratio > 1 else max_seq_len
    return stack_rows([pack_row(row, max_seq_len, codebooks, slots, rng) for row in documents])


def inputs(batch: RowBatch) -> dict[str, Tensor]:
    """Arguments of `CSM.losses`."""
    names = ("tokens", "mask", "positions", "targets", "slots", "slot_weights")
    return {name: getattr(batch, name) for name in names} | {"attention_mask": batch.attention_mask()}


def forward(model: CSM, batch: RowBatch) -> LossSums:
    return model(**inputs(batch))


def forward_backward(
    model: CSM, batch: RowBatch, chunk: int, config: LossConfig, total_frames: float = 1.0
) -> LossSums:
    """Adds the gradients as training does, `chunk` frames of the depth decoder at a time."""
    return backward_in_chunks(LocalEngine(model), inputs(batch), replace(config, decoder_chunk=chunk), total_frames)
