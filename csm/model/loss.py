"""The training objective as sums over frames; normalization happens in one place, `LossSums.loss`.

    loss = c0_weight * (1/F) sum_frames e * CE(c_0)
         + decoder_weight * (1/F) sum_slots e * w * mean_{i=1..K-1} CE(c_i)

e is `eos_weight` for end-of-speech frames and 1 for all others; reported sums are without it. F counts all supervised
frames of the optimizer step (all microbatches, all ranks), end-of-speech frames included.
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

ENTROPY_POSITIONS = 4096  # at a time


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
    end_losses: [2] fp32, what end-of-speech frames add to (c0, decoder), with gradient
    """

    c0: Tensor
    decoder: Tensor
    losses: Tensor
    correct: Tensor
    top5: Tensor
    entropy: Tensor
    frames: Tensor
    eos: Tensor
    end_losses: Tensor

    def loss(self, config: LossConfig, total_frames: Tensor | float) -> Tensor:
        """The objective's share of this microbatch, normalized by the frames of the whole optimizer step."""
        end_c0, end_decoder = self.end_losses
        return objective_share(config, total_frames, self.c0, end_c0, self.decoder, end_decoder)

    def stacked(self) -> Tensor:
        """The reported sums in one detached vector `[2K + 7]`, for adding up and for a single all-reduce."""
        single = torch.stack((self.top5, self.entropy, self.frames))
        return torch.cat((self.losses, self.correct, single, self.eos, self.end_losses)).detach()

    @staticmethod
    def from_stacked(vector: Tensor) -> LossSums:
        codebooks = (vector.numel() - 7) // 2
        losses, correct, single, eos, ends = vector.split((codebooks, codebooks, 3, 2, 2))
        top5, entropy, frames = single
        return LossSums(losses[0], losses[1:].mean(), losses, correct, top5, entropy, frames, eos, ends)


def objective_share(
    config: LossConfig,
    total_frames: Tensor | float,
    c0: Tensor | float,
    end_c0: Tensor | float,
    decoder: Tensor,
    end_decoder: Tensor,
) -> Tensor:
    """The objective of sums over frames, `end_*` being the parts of them that belong to end-of-speech frames."""
    more = config.eos_weight - 1
    weighted = config.c0_weight * (c0 + more * end_c0) + config.decoder_weight * (decoder + more * end_decoder)
    return weighted / total_frames


class BackboneSums(NamedTuple):
    """The backbone's half of `LossSums`. Fields of the same names are the same; in addition:

    end_c0:     [] fp32, what end-of-speech frames add to c0, with its gradient
    c0_correct: [] fp32, number of frames whose most likely code of codebook 0 is right
    ends:       [B*N] bool, slots that hold an end-of-speech frame
    c0_right:   [B*N] bool, slots whose codebook 0 is predicted
    """

    c0: Tensor
    end_c0: Tensor
    c0_correct: Tensor
    top5: Tensor
    entropy: Tensor
    frames: Tensor
    ends: Tensor
    c0_right: Tensor


class DecoderFrames(NamedTuple):
    """M frames for the depth decoder.

    states:     [M, D], backbone state before each frame
    embeddings: [M, K-1, D], of c_0..c_{K-2}; without a depth decoder see csm/model/single_stack.py
    codes:      [M, K]
    weights:    [M] fp32, inverse sampling probabilities; 0 = empty
    """

    states: Tensor
    embeddings: Tensor
    codes: Tensor
    weights: Tensor


class DecoderSums(NamedTuple):
    """The depth decoder's half of `LossSums`.

    decoder:         [] fp32, as there, with its gradient
    end_decoder:     [] fp32, what end-of-speech frames add to it, with its gradient
    losses, correct: [K-1] fp32, weighted sums of each codebook's cross entropy and hits, without gradient
    all_right:       [M] bool, whether codes 1..K-1 of a frame were all the most likely ones
    """

    decoder: Tensor
    end_decoder: Tensor
    losses: Tensor
    correct: Tensor
    all_right: Tensor


def backbone_sums(
    c0_logits: Tensor, codes: Tensor, targets: Tensor, slots: Tensor, slot_weights: Tensor
) -> BackboneSums:
    """Sums of codebook 0.

    c0_logits: [B, S, V] with codes [B, S, K] and targets bool [B, S] already aligned to them;
    slots, slot_weights: [B, N], where the depth decoder's frames lie in them, 0 = empty slot
    """
    # Positions that are not predicted get ignore_index -100: loss 0, no gradient, static shapes.
    labels = torch.where(targets, codes[..., 0], -100)
    nats = F.cross_entropy(c0_logits.flatten(0, 1).float(), labels.flatten(), reduction="none")  # [B*S]
    ends = is_eos_frame(codes).flatten()  # of positions that are not predicted too, whose loss is 0
    c0, end_c0 = nats.sum(), (nats * ends).sum()
    with torch.no_grad():
        right = c0_logits.argmax(-1) == codes[..., 0]  # [B, S]
        five = c0_logits.topk(5).indices == codes[..., :1]  # [B, S, 5]
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        return BackboneSums(
            c0=c0,
            end_c0=end_c0,
            c0_correct=(right & targets).sum().float(),
            top5=(five.any(-1) & targets).sum().float(),
            entropy=torch.where(targets, _entropy(c0_logits), 0.0).sum(),
            frames=targets.sum().float(),
            ends=(is_eos_frame(codes[rows, slots]) & (slot_weights > 0)).flatten(),
            c0_right=right[rows, slots].flatten(),
        )


def decoder_sums(logits: Tensor, codes: Tensor, weights: Tensor) -> DecoderSums:
    """Sums of codebooks 1..K-1 of M frames: logits [K-1, M, V], codes [M, K], weights [M]."""
    expected = codes[:, 1:].T  # [K-1, M]
    nats = F.cross_entropy(logits.flatten(0, 1).float(), expected.flatten(), reduction="none").view_as(expected)
    losses = (nats * weights).sum(dim=1)  # [K-1]
    end_losses = (nats * (weights * is_eos_frame(codes))).sum(dim=1)
    with torch.no_grad():
        right = logits.argmax(-1) == expected
        correct = (right * weights).sum(dim=1)
    return DecoderSums(losses.mean(), end_losses.mean(), losses.detach(), correct, right.all(dim=0))


def join(backbone: BackboneSums, decoder: DecoderSums) -> LossSums:
    """The sums of both stacks. decoder: over exactly the frames that go with `backbone`."""
    found = backbone.ends & backbone.c0_right & decoder.all_right
    return LossSums(
        c0=backbone.c0,
        decoder=decoder.decoder,
        losses=torch.cat((backbone.c0.detach()[None], decoder.losses)),
        correct=torch.cat((backbone.c0_correct[None], decoder.correct)),
        top5=backbone.top5,
        entropy=backbone.entropy,
        frames=backbone.frames,
        eos=torch.stack((backbone.ends.sum(), found.sum())).float(),
        end_losses=torch.stack((backbone.end_c0, decoder.end_decoder)),
    )


# ------------------------------------------------------------------------------------------------ chunks of frames


def frame_chunks(frames: DecoderFrames, size: int) -> list[DecoderFrames]:
    """`frames` in pieces of exactly `size`, the last one filled up with empty frames: one shape, compiled once."""
    *chunks, last = [DecoderFrames(*parts) for parts in zip(*(tensor.split(size) for tensor in frames), strict=True)]
    if padding := size - len(last.weights):
        last = DecoderFrames(
            F.pad(last.states, (0, 0, 0, padding)),
            F.pad(last.embeddings, (0, 0, 0, 0, 0, padding)),
            F.pad(last.codes, (0, 0, 0, padding)),
            F.pad(last.weights, (0, padding)),
        )
    return [*chunks, last]


def join_chunks(chunks: list[DecoderSums], num_frames: int) -> DecoderSums:
    """Sums over all chunks of `num_frames` frames."""
    return DecoderSums(
        torch.stack([chunk.decoder for chunk in chunks]).sum(),
        torch.stack([chunk.end_decoder for chunk in chunks]).sum(),
        torch.stack([chunk.losses for chunk in chunks]).sum(0),
        torch.stack([chunk.correct for chunk in chunks]).sum(0),
        torch.cat([chunk.all_right for chunk in chunks])[:num_frames],
    )


def _entropy(logits: Tensor) -> Tensor:
    """In nats, `[B, S, V]` -> fp32 `[B, S]`; a few positions at a time, to need no second tensor of that size."""
    parts = []
    for part in logits.flatten(0, 1).split(ENTROPY_POSITIONS):
        nats = part.float().log_softmax(-1)
        parts.append(-nats.exp().mul_(nats).sum(-1))
    return torch.cat(parts).view(logits.shape[:-1])
