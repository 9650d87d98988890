"""CSM: the backbone reads frames and predicts codebook 0; the depth decoder predicts codebooks 1..K-1.

    tokens, mask [B, S, K+1] --embed--> [B, S, D] --backbone--> states h [B, S, D]
    c0 of the frame at position p     <- codebook0_head(h[p-1])
    c_1..c_{K-1} of that frame        <- depth decoder over  h[p-1], emb(c_0), ..., emb(c_{K-2})   (K positions)

Notable choices, all Sesame's (SesameAILabs/csm `models.py`): the decoder is conditioned on the backbone state
after the final norm; one audio embedding table, indexed `code + codebook * V`, serves both stacks; `projection`
brings its D-wide vectors to the decoder's width; every codebook has its own head.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import CSMConfig
from csm.model.init import draw
from csm.model.loss import (
    BackboneSums,
    DecoderFrames,
    DecoderSums,
    LossSums,
    backbone_sums,
    decoder_sums,
    join,
)
from csm.model.transformer import AttentionMask, Transformer


class CSM(nn.Module):
    """The model of one `CSMConfig`.

    `model(...)` computes the training loss, `model(..., method="backbone_losses")` and `method="decoder_losses"` its
    two halves (see `forward`). Generation uses the weights (csm/inference/weights.py).
    """

    def __init__(self, config: CSMConfig) -> None:
        super().__init__()
        self.config = config
        width, depth_width = config.backbone.dim, config.decoder.dim
        vocab, codebooks = config.audio_vocab_size, config.num_codebooks
        self.text_embeddings = nn.Embedding(config.text_vocab_size, width)
        self.audio_embeddings = nn.Embedding(codebooks * vocab, width)
        self.backbone = Transformer(config.backbone, config.rope, config.norm_eps)
        self.codebook0_head = nn.Linear(width, vocab, bias=False)
        self.projection = nn.Linear(width, depth_width, bias=False)
        self.decoder = Transformer(config.decoder, config.rope, config.norm_eps)
        self.audio_head = nn.Parameter(torch.empty(codebooks - 1, depth_width, vocab))
        if self.audio_head.device.type != "meta":
            self.init_weights()

    def init_weights(self) -> None:
        """Initializes every parameter: normal(0, initializer_std), norms 1, and the projections that write into
        the residual stream smaller by sqrt(2 * layers), so that its variance does not grow with depth (GPT-2)."""
        std = self.config.initializer_std
        normal = partial(nn.init.normal_, std=std)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                draw(module.weight, normal)
        draw(self.audio_head, normal)
        for stack in (self.backbone, self.decoder):
            smaller = partial(nn.init.normal_, std=std / math.sqrt(2 * len(stack.layers)))
            draw(stack.norm.weight, nn.init.ones_)
            for layer in stack.blocks():
                draw(layer.attn_norm.weight, nn.init.ones_)
                draw(layer.mlp_norm.weight, nn.init.ones_)
                draw(layer.attn.o_proj.weight, smaller)
                draw(layer.mlp.down_proj.weight, smaller)

    # -------------------------------------------------------------------------------------------- embeddings

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sum of the present embeddings of every position: `tokens, mask [B, S, K+1]` -> `[B, S, D]`."""
        batch, length, columns = tokens.shape
        table = self.audio_embeddings.weight
        rows = self.table_rows(tokens[..., :-1]).view(-1, columns - 1)  # [B*S, K]
        present = mask[..., :-1].reshape(-1, columns - 1).to(table.dtype)
        audio = F.embedding_bag(rows, table, mode="sum", per_sample_weights=present)  # never holds [B*S, K, D]
        return self.embed_text(tokens, mask) + audio.view(batch, length, -1)

    def embed_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Text embeddings `[B, S, D]`, zero where a position is a frame."""
        text = self.text_embeddings(tokens[..., -1])
        return text * mask[..., -1:].to(text.dtype)

    def embed_codes(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """Embeddings of codes of consecutive codebooks: `[M, n]` -> `[M, n, D]`."""
        return self.audio_embeddings(self.table_rows(codes, first_codebook))

    def embed_rows(self, tokens: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """`embed(tokens, mask)` and `embed_codes(codes)`, which share the audio table."""
        return self.embed(tokens, mask), self.embed_codes(codes)

    def table_rows(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """Rows of the audio table for codes `[..., n]` of consecutive codebooks."""
        codebooks = torch.arange(first_codebook, first_codebook + codes.shape[-1], device=codes.device)
        return codes + codebooks * self.config.audio_vocab_size

    # ------------------------------------------------------------------------------------------------ stacks

    def backbone_states(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        attention_mask: AttentionMask | None = None,
    ) -> Tensor:
        """States after the final norm `[B, S, D]`; the one at p-1 predicts the frame at p."""
        return self.backbone(self.embed(tokens, mask), positions, attention_mask)

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

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[K-1, M, V]` of codebooks 1..K-1 by their heads, from the decoder's states `[K-1, M, d]`."""
        return torch.bmm(hidden, self.audio_head)

    # ---------------------------------------------------------------------------------------------- training

    def forward(self, *args: Any, method: str = "losses", **kwargs: Any) -> Any:
        """Runs `losses`, `backbone_losses`, `decoder_losses` or `shifted_losses`.

        Everything in training goes through here, because DDP, FSDP and DeepSpeed act when a module is called: they
        gather its weights and get ready for its backward pass.
        """
        return getattr(self, method)(*args, **kwargs)

    def losses(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        targets: Tensor,
        slots: Tensor,
        slot_weights: Tensor,
        attention_mask: AttentionMask | None = None,
        inputs: Tensor | None = None,
    ) -> LossSums:
        """Loss sums over packed rows, all decoder frames at once.

        tokens, mask:   [B, S, K+1], see csm/frames.py
        positions:      [B, S] int, restarting with every document
        targets:        [B, S] bool, positions whose frame is predicted (never position 0)
        slots:          [B, N] int, positions of the frames the depth decoder sees
        slot_weights:   [B, N] float, inverse sampling probabilities; 0 = empty slot
        attention_mask: [B, 1, S, S], block-diagonal and causal; None = one document per row
        inputs:         [B, S, K+1], what the backbone reads in place of `tokens`
        """
        backbone, frames = self.backbone_losses(
            tokens, mask, positions, targets, slots, slot_weights, attention_mask, inputs
        )
        return join(backbone, self.decoder_losses(frames))

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

    def shifted_losses(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        targets: Tensor,
        shifts: tuple[int, ...],
        attention_mask: AttentionMask | None = None,
    ) -> Tensor:
        """Cross entropy of codebook 0 with the labels of frames `shift` positions later: sums and counts
        `[2, len(shifts)]` over predicted frames that have such a neighbor, for csm/stability/labels.py."""
        logits = self.codebook0_head(
            self.backbone_states(tokens, mask, positions, attention_mask)[:, :-1]
        )  # [B, S-1, V]
        codes, frames = tokens[:, 1:, 0], mask[:, 1:, 0]
        usable = targets[:, 1:].clone()
        for shift in shifts:  # the same frames for all of them
            usable &= frames.roll(-shift, 1)
        usable[:, :1] = usable[:, -1:] = False  # where rolling brings the other end of the row
        sums = [
            F.cross_entropy(
                logits.flatten(0, 1).float(),
                torch.where(usable, codes.roll(-shift, 1), -100).flatten(),
                reduction="sum",
            )
            for shift in shifts
        ]
        return torch.stack((torch.stack(sums), usable.sum().float().expand(len(shifts))))

    def decoder_losses(self, frames: DecoderFrames) -> DecoderSums:
        """The half of `losses` that the depth decoder computes, for any part of the frames."""
        return decoder_sums(self._decoder_logits(frames.states, frames.embeddings), frames.codes, frames.weights)
