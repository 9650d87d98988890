"""The training objective, as sums: what is divided by what is decided once, in `LossSums.loss`.

    loss = c0_weight * (1/F) sum_frames CE(c_0)
         + decoder_weight * (1/F) sum_slots w * mean_{i=1..K-1} CE(c_i)

F counts all supervised frames of the optimizer step (all microbatches, all ranks), end-of-speech frames included.
The depth decoder sees a random share of the frames ("compute amortization", Sesame's blog post: 1/16); each chosen
frame stands for w = 1 / P(chosen) frames, so the expectation is the loss over all frames whatever the share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import LossConfig
from csm.frames import is_eos_frame


@dataclass
class LossSums:
    """Sums over the frames of a microbatch; add them up, then divide by the number of frames.

    losses:   [K] fp32, weighted sum of the cross entropy (nats) of each codebook
    correct:  [K] fp32, weighted number of frames whose most likely code is right
    frames:   [] fp32, number of supervised frames
    eos:      [2] fp32, (end-of-speech frames seen by both stacks, those predicted in all K codebooks)
    """

    losses: Tensor
    correct: Tensor
    frames: Tensor
    eos: Tensor

    def loss(self, config: LossConfig, total_frames: Tensor | float) -> Tensor:
        """The objective's share of this microbatch, normalized by the frames of the whole optimizer step."""
        decoder = self.losses[1:].mean()
        return (config.c0_weight * self.losses[0] + config.decoder_weight * decoder) / total_frames

    def stacked(self) -> Tensor:
        """Everything in one detached vector `[2K + 3]`, for adding up and for a single all-reduce."""
        return torch.cat((self.losses, self.correct, self.frames[None], self.eos)).detach()

    @staticmethod
    def from_stacked(vector: Tensor) -> LossSums:
        codebooks = (vector.numel() - 3) // 2
        losses, correct, frames, eos = vector.split((codebooks, codebooks, 1, 2))
        return LossSums(losses, correct, frames[0], eos)


def codebook_losses(
    c0_logits: Tensor,
    codes: Tensor,
    targets: Tensor,
    slot_c0_logits: Tensor,
    slot_codes: Tensor,
    slot_weights: Tensor,
    decoder_logits: Callable[[int, int], Tensor],
    chunk: int,
) -> LossSums:
    """Sums of the losses of all codebooks.

    c0_logits: [B, S, V] with codes [B, S, K] and targets bool [B, S] already aligned to them;
    slot_c0_logits: [M, V]; slot_codes: [M, K]; slot_weights: [M], 0 = empty slot;
    decoder_logits(start, end) -> [K-1, end-start, V] for the slots start..end.
    """
    c0_codes = codes[..., 0]
    # Positions that are not predicted get ignore_index -100: loss 0, no gradient, static shapes.
    labels = torch.where(targets, c0_codes, -100)
    c0_loss = F.cross_entropy(c0_logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    c0_correct = ((c0_logits.argmax(-1) == c0_codes) & targets).sum()

    losses, correct, eos = [], [], []
    for start in range(0, slot_codes.shape[0], chunk):
        end = min(start + chunk, slot_codes.shape[0])
        weights, frames = slot_weights[start:end], slot_codes[start:end]
        logits = decoder_logits(start, end)  # [K-1, m, V]
        expected = frames[:, 1:].T  # [K-1, m]
        nats = F.cross_entropy(logits.flatten(0, 1).float(), expected.flatten(), reduction="none").view_as(expected)
        losses.append((nats * weights).sum(dim=1))
        with torch.no_grad():
            right = logits.argmax(-1) == expected
            correct.append((right * weights).sum(dim=1))
            ends = is_eos_frame(frames) & (weights > 0)
            found = ends & right.all(dim=0) & (slot_c0_logits[start:end].argmax(-1) == 0)
            eos.append(torch.stack((ends.sum(), found.sum())))
    return LossSums(
        losses=torch.cat((c0_loss[None], torch.stack(losses).sum(0))),
        correct=torch.cat((c0_correct[None].float(), torch.stack(correct).sum(0))),
        frames=targets.sum().float(),
        eos=torch.stack(eos).sum(0).float(),
    )
