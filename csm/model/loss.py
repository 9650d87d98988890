"""The training objective, as sums: what is divided by what is decided once, in `LossSums.loss`.

    loss = c0_weight * (1/F) sum_frames CE(c_0)
         + decoder_weight * (1/F) sum_slots w * mean_{i=1..K-1} CE(c_i)

F counts all supervised frames of the optimizer step (all microbatches, all ranks), end-of-speech frames included.
The depth decoder sees a random share of the frames ("compute amortization", Sesame's blog post: 1/16); each chosen
frame stands for w = 1 / P(chosen) frames, so the expectation is the loss over all frames whatever the share.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import LossConfig
from csm.frames import is_eos_frame
from csm.model.depth import DecoderSums

ENTROPY_POSITIONS = 512  # at a time


class LossSums(NamedTuple):
    """Sums over the frames of a microbatch; add them up, then divide by the number of frames.

    A tuple, because sharding libraries look for the tensors that a model returns, to gather its weights before their
    backward pass.

    c0:       [] fp32, sum of the cross entropy (nats) of codebook 0; the objective's first part, with its gradient
    decoder:  [] fp32, weighted sum of the mean cross entropy of codebooks 1..K-1; its second part, with its gradient
    losses:   [K] fp32, weighted sum of the cross entropy of each codebook, for reporting
    correct:  [K] fp32, weighted number of frames whose most likely code is right
    top5:     [] fp32, number of frames whose codebook 0 is among the five most likely codes
    entropy:  [] fp32, sum of the entropy (nats) of the distribution predicted for codebook 0
    frames:   [] fp32, number of supervised frames
    eos:      [2] fp32, (end-of-speech frames seen by both stacks, those predicted in all K codebooks)
    """

    c0: Tensor
    decoder: Tensor
    losses: Tensor
    correct: Tensor
    top5: Tensor
    entropy: Tensor
    frames: Tensor
    eos: Tensor

    def loss(self, config: LossConfig, total_frames: Tensor | float) -> Tensor:
        """The objective's share of this microbatch, normalized by the frames of the whole optimizer step."""
        return (config.c0_weight * self.c0 + config.decoder_weight * self.decoder) / total_frames

    def stacked(self) -> Tensor:
        """What is reported, in one detached vector `[2K + 5]`, for adding up and for a single all-reduce."""
        single = torch.stack((self.top5, self.entropy, self.frames))
        return torch.cat((self.losses, self.correct, single, self.eos)).detach()

    @staticmethod
    def from_stacked(vector: Tensor) -> LossSums:
        codebooks = (vector.numel() - 5) // 2
        losses, correct, single, eos = vector.split((codebooks, codebooks, 3, 2))
        return LossSums(losses[0], losses[1:].mean(), losses, correct, *single, eos)


def loss_sums(
    c0_logits: Tensor, codes: Tensor, targets: Tensor, slots: Tensor, slot_weights: Tensor, decoder: DecoderSums
) -> LossSums:
    """Joins the losses of both stacks.

    c0_logits: [B, S, V] with codes [B, S, K] and targets bool [B, S] already aligned to them;
    slots, slot_weights: [B, N], where the depth decoder's frames lie in them, 0 = empty slot;
    decoder: its sums over these B*N frames.
    """
    # Positions that are not predicted get ignore_index -100: loss 0, no gradient, static shapes.
    labels = torch.where(targets, codes[..., 0], -100)
    c0 = F.cross_entropy(c0_logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    with torch.no_grad():
        c0_right = c0_logits.argmax(-1) == codes[..., 0]  # [B, S]
        five = c0_logits.topk(5).indices == codes[..., :1]  # [B, S, 5]
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        ends = is_eos_frame(codes[rows, slots]) & (slot_weights > 0)  # [B, N]
        found = ends & c0_right[rows, slots] & decoder.all_right.view_as(ends)
        return LossSums(
            c0=c0,
            decoder=decoder.total,
            losses=torch.cat((c0.detach()[None], decoder.losses)),
            correct=torch.cat(((c0_right & targets).sum()[None].float(), decoder.correct)),
            top5=(five.any(-1) & targets).sum().float(),
            entropy=torch.where(targets, _entropy(c0_logits), 0.0).sum(),
            frames=targets.sum().float(),
            eos=torch.stack((ends.sum(), found.sum())).float(),
        )


def _entropy(logits: Tensor) -> Tensor:
    """In nats, `[B, S, V]` -> fp32 `[B, S]`; a few positions at a time, to need no second tensor of that size."""
    parts = []
    for part in logits.flatten(0, 1).split(ENTROPY_POSITIONS):
        nats = part.float().log_softmax(-1)
        parts.append(-nats.exp().mul_(nats).sum(-1))
    return torch.cat(parts).view(logits.shape[:-1])
