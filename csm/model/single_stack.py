"""One stack for all codebooks: the model of the layouts `delay` and `flat`, baselines beside CSM.

    tokens, mask [B, S, K+1] --embed--> [B, S, D] --backbone--> states h [B, S, D]
    code k of the frame at place p, which lies at p+k   <- head k (h[p+k-1])

Both layouts are the same model: what is present at a position is predicted from the state before it, by the head of its
codebook. In what order that is, and what each code is predicted from, follows from where the codes lie
(csm/arrangement.py). The heads are named as CSM's: `codebook0_head`, and `audio_head` for the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csm.arrangement import by_frame
from csm.config import CodeLayout, CSMConfig
from csm.model.csm import CSM
from csm.model.loss import BackboneSums, DecoderFrames, DecoderSums, backbone_sums, decoder_sums
from csm.model.speech_lm import SpeechLM
from csm.model.transformer import AttentionMask


def build_model(config: CSMConfig) -> SpeechLM:
    """The model of a configuration, whatever its layout."""
    return CSM(config) if config.layout is CodeLayout.depth else SingleStack(config)


class SingleStack(SpeechLM):
    """The model of a `CSMConfig` whose layout is `delay` or `flat`; `config.decoder` is not used."""

    def __init__(self, config: CSMConfig) -> None:
        super().__init__(config)
        self.audio_head = nn.Parameter(
            torch.empty(config.num_codebooks - 1, config.backbone.dim, config.audio_vocab_size)
        )
        if self.audio_head.device.type != "meta":
            self.init_weights()

    def backbone_losses(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        targets: Tensor,
        slots: Tensor,
        slot_weights: Tensor,
        attention_mask: AttentionMask | None = None,
        inputs: Tensor | None = None,
    ) -> tuple[BackboneSums, DecoderFrames]:
        """The states of all positions, the losses of codebook 0, and the states that predict the other codebooks.

        `slots` hold all predicted frames, so that `targets` need not be looked at. In the `DecoderFrames`,
        `embeddings [B*N, K-1, D]` are the states before c_1..c_{K-1}; `states`, those before c_0, are not needed there.
        """
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        codes = by_frame(tokens[..., :-1], self.config.layout)[rows, slots]  # [B, N, K]
        embedded = self.embed(tokens if inputs is None else inputs, mask)
        states = self.backbone(embedded, positions, attention_mask)  # [B, S, D]
        first = states[rows, slots - 1]  # [B, N, D]
        c0_logits = self.codebook0_head(first)  # [B, N, V]
        numbers = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        sums = backbone_sums(c0_logits, codes, slot_weights > 0, numbers, slot_weights)
        # c_1..c_{K-1} lie at slot + 1 .. slot + K-1, and the states before them at slot .. slot + K-2.
        steps = torch.arange(codes.shape[2] - 1, device=slots.device)
        before = (rows * states.shape[1] + slots).flatten()[:, None] + steps
        others = states.flatten(0, 1).index_select(0, before.flatten()).view(*before.shape, -1)  # [B*N, K-1, D]
        return sums, DecoderFrames(first.flatten(0, 1).detach(), others, codes.flatten(0, 1), slot_weights.flatten())

    def decoder_losses(self, frames: DecoderFrames) -> DecoderSums:
        """The losses of codebooks 1..K-1 by their heads, for any part of the frames."""
        return decoder_sums(self.audio_logits(frames.embeddings.transpose(0, 1)), frames.codes, frames.weights)
