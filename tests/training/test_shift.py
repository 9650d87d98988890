"""The control that "the loss went down" is not: a trained model must know its own labels and no shifted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csm.config import CSMConfig, LossConfig, OptimConfig, TransformerConfig
from csm.data.packing import num_slots, pack_row
from csm.frames import TurnTokens, conversation_frames
from csm.model.csm import CSM
from csm.training.optim import build_optimizer

CODEBOOKS, SIZE, FRAMES = 32, 17, 24


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    """A model with all 32 codebooks that has learned two short turns by heart, and those turns."""
    torch.manual_seed(0)
    config = CSMConfig(
        backbone=TransformerConfig(layers=2, dim=64, heads=4, kv_heads=2, ffn_dim=160),
        decoder=TransformerConfig(layers=2, dim=48, heads=3, kv_heads=1, ffn_dim=128),
        text_vocab_size=20,
        codebook_size=SIZE,
        num_codebooks=CODEBOOKS,
    )
    turns = [TurnTokens([1, 2 + i, 19], torch.randint(1, SIZE, (CODEBOOKS, FRAMES))) for i in range(2)]
    documents = [conversation_frames([turn], CODEBOOKS) for turn in turns]
    model = CSM(config)
    optimizer = build_optimizer(model, OptimConfig(lr=4e-3, weight_decay=0.0))
    for step in range(220):
        row = pack_row(documents, 64, CODEBOOKS, num_slots(64, 4), np.random.default_rng(step))
        sums = model(
            row.tokens, row.mask, row.positions, row.targets, row.slots, row.slot_weights, row.attention_mask()
        )
        sums.loss(LossConfig(decoder_weight=2.0), sums.frames).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), documents[0]


@torch.no_grad()
def codebook_losses(model: CSM, frames, label_shift: int) -> torch.Tensor:
    """Mean cross entropy of every codebook, [K], with labels taken `label_shift` frames later than they should be."""
    first = int(frames.mask[:, 0].float().argmax())
    positions = torch.arange(first + 1, first + FRAMES - 1)  # frames that have a neighbour on either side
    states = model.backbone_states(frames.tokens[None], frames.mask[None], torch.arange(len(frames))[None])[0]
    codes, labels = frames.tokens[positions, :-1], frames.tokens[positions + label_shift, :-1]
    c0 = F.cross_entropy(model.codebook0_head(states[positions - 1]), labels[:, 0])
    logits = model.decoder_logits(states[positions - 1], codes[:, :-1])  # [K-1, M, V]
    rest = [F.cross_entropy(logits[i], labels[:, i + 1]) for i in range(CODEBOOKS - 1)]
    return torch.stack([c0, *rest])


def test_loss_on_true_labels_is_far_below_loss_on_shifted_labels(trained):
    model, frames = trained
    true = codebook_losses(model, frames, 0)
    chance = math.log(SIZE)
    assert (true < 0.25 * chance).all(), true
    for shift in (-1, 1):
        shifted = codebook_losses(model, frames, shift)
        assert (shifted > chance).all(), shifted  # confidently wrong: worse than guessing
        assert (shifted - true > 2.0).all()
