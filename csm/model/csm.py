"""CSM: the backbone reads frames and predicts codebook 0; the depth decoder predicts codebooks 1..K-1.

    tokens, mask [B, S, K+1] --embed--> [B, S, D] --backbone--> states h [B, S, D]
    c0 of the frame at position p     <- codebook0_head(h[p-1])
    c_1..c_{K-1} of that frame        <- depth decoder over  h[p-1], emb(c_0), ..., emb(c_{K-2})   (K positions)

Notable choices, all Sesame's (SesameAILabs/csm `models.py`): the decoder is conditioned on the backbone state
after the final norm; one audio embedding table, indexed `code + codebook * V`, serves both stacks; `projection`
brings its D-wide vectors to the decoder's width; every codebook has its own head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csm.config import CSMConfig
from csm.model.loss import BackboneSums, DecoderFrames, DecoderSums, backbone_sums, decoder_sums
from csm.model.speech_lm import SpeechLM
from csm.model.transformer import AttentionMask, Transformer


class CSM(SpeechLM):
    """The model of one `CSMConfig`. Generation uses the weights (csm/inference/weights.py)."""

    def __init__(self, config: CSMConfig) -> None:
        super().__init__(config)
        width, depth_width = config.backbone.dim, config.decoder.dim
        self.projection = nn.Linear(width, depth_width, bias=False)
        self.decoder = Transformer(config.decoder, config.rope, config.norm_eps)
        self.audio_head = nn.Parameter(torch.empty(config.num_codebooks - 1, depth_width, config.audio_vocab_size))
        if self.audio_head.device.type != "meta":
            self.init_weights()

    def stacks(self) -> list[Transformer]:
        return [self.backbone, self.decoder]

    # ------------------------------------------------------------------------------------------- depth decoder

    def embed_codes(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """Embeddings of codes of consecutive codebooks: `[M, n]` -> `[M, n, D]`."""
        return self.audio_embeddings(self.table_rows(codes, first_codebook))

    def embed_rows(self, tokens: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """`embed(tokens, mask)` and `embed_codes(codes)`, which share the audio table."""
        return self.embed(tokens, mask), self.embed_codes(codes)

    def decoder_logits(self, states: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced logits of codebooks 1..K-1 of M frames.

        states: [M, D], backbone states before each frame; codes: [M, K-1], c_0..c_{K-2} of the frames.
        Returns [K-1, M, V]: entry i-1 predicts c_i, from h and c_0..c_{i-1}.
        """
        return self._decoder_logits(states, self.embed_codes(codes))

    def _decoder_logits(self, states: Tensor, embeddings: Tensor) -> Tensor:
        # Both are projected before they are joined: the copy is half as wide.
        projected = (self.projection(states)[:, None], self.projection(embeddings))
        inputs = torch.cat(projected, dim=1)  # [M, K, d]
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]  # the same for every frame
        hidden = self.decoder(inputs, positions)  # [M, K, d]
        return self.audio_logits(hidden[:, 1:].transpose(0, 1))  # [K-1, M, V]

    # ---------------------------------------------------------------------------------------------- training

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
        """The half of `losses` that the backbone computes, and the frames that the depth decoder is to see."""
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        codes = tokens[..., :-1]
        slot_codes = codes[rows, slots].flatten(0, 1)  # [B*N, K]
        embedded, slot_embeddings = self.embed_rows(tokens if inputs is None else inputs, mask, slot_codes[:, :-1])
        states = self.backbone(embedded, positions, attention_mask)  # [B, S, D]
        c0_logits = self.codebook0_head(states[:, :-1])  # [B, S-1, V]: state p-1 predicts position p
        sums = backbone_sums(c0_logits, codes[:, 1:], targets[:, 1:], slots - 1, slot_weights)
        slot_states = states[rows, slots - 1].flatten(0, 1)  # [B*N, D]
        return sums, DecoderFrames(slot_states, slot_embeddings, slot_codes, slot_weights.flatten())

    def decoder_losses(self, frames: DecoderFrames) -> DecoderSums:
        """The half of `losses` that the depth decoder computes, for any part of the frames."""
        return decoder_sums(self._decoder_logits(frames.states, frames.embeddings), frames.codes, frames.weights)
