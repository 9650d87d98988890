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

import torch
from torch import Tensor, nn

from csm.config import CSMConfig
from csm.model.depth import decoder_sums
from csm.model.embedding import FrameEmbeddings
from csm.model.init import draw
from csm.model.loss import LossSums, loss_sums
from csm.model.transformer import AttentionMask, Cache, Transformer


class CSM(nn.Module):
    """The model of one `CSMConfig`; `forward` is the training forward, the other methods serve generation too."""

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
            for layer in stack.layers:
                draw(layer.attn_norm.weight, nn.init.ones_)
                draw(layer.mlp_norm.weight, nn.init.ones_)
                draw(layer.attn.o_proj.weight, smaller)
                draw(layer.mlp.down_proj.weight, smaller)

    # -------------------------------------------------------------------------------------------- embeddings

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sum of the present embeddings of every position: `tokens, mask [B, S, K+1]` -> `[B, S, D]`."""
        return self._embed(tokens, mask, tokens.new_zeros(0, self.config.num_codebooks - 1))[0]

    def embed_codes(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """Embeddings of codes of consecutive codebooks: `[M, n]` -> `[M, n, D]`."""
        return self.audio_embeddings(codes + self._offsets(codes, first_codebook))

    def _embed(self, tokens: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What `embed` gives for `tokens`, and what `embed_codes` gives for `codes [M, K-1]`."""
        batch, length, columns = tokens.shape
        table = self.audio_embeddings.weight
        rows = (tokens[..., :-1] + self._offsets(tokens[..., :-1])).view(-1, columns - 1)  # [B*S, K]
        present = mask[..., :-1].reshape(-1, columns - 1).to(table.dtype)
        audio, single = FrameEmbeddings.apply(table, rows, present, codes + self._offsets(codes))
        text = self.text_embeddings(tokens[..., -1]) * mask[..., -1:].to(table.dtype)
        return text + audio.view(batch, length, -1), single

    def _offsets(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """Where each codebook's part of the table begins: [n] for codes [..., n]."""
        numbers = torch.arange(first_codebook, first_codebook + codes.shape[-1], device=codes.device)
        return numbers * self.config.audio_vocab_size

    # ------------------------------------------------------------------------------------------------ stacks

    def backbone_states(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        attention_mask: AttentionMask | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """States after the final norm `[B, S, D]`; the one at p-1 predicts the frame at p."""
        return self.backbone(self.embed(tokens, mask), positions, attention_mask, cache)

    def decoder_logits(self, states: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced logits of codebooks 1..K-1 of M frames.

        states: [M, D], backbone states before each frame; codes: [M, K-1], c_0..c_{K-2} of the frames.
        Returns [K-1, M, V]: entry i-1 predicts c_i, from h and c_0..c_{i-1}.
        """
        return torch.bmm(self._decode(states, self.embed_codes(codes)), self.audio_head)

    def _decode(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """`DecoderStates` of csm/model/depth.py."""
        # Both are projected before they are joined: the copy is half as wide.
        projected = (self.projection(states)[:, None], self.projection(embeddings))
        inputs = torch.cat(projected, dim=1)  # [M, K, d]
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]  # the same for every frame
        hidden = self.decoder(inputs, positions)  # [M, K, d]
        return hidden[:, 1:].transpose(0, 1)  # [K-1, M, d]

    # ---------------------------------------------------------------------------------------------- training

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        targets: Tensor,
        slots: Tensor,
        slot_weights: Tensor,
        attention_mask: AttentionMask | None = None,
        chunk: int | None = None,
    ) -> LossSums:
        """Loss sums over packed rows.

        tokens, mask:   [B, S, K+1], see csm/frames.py
        positions:      [B, S] int, restarting with every document
        targets:        [B, S] bool, positions whose frame is predicted (never position 0)
        slots:          [B, N] int, positions of the frames the depth decoder sees
        slot_weights:   [B, N] float, inverse sampling probabilities; 0 = empty slot
        attention_mask: [B, 1, S, S], block-diagonal and causal; None = one document per row
        chunk:          frames per pass of the depth decoder, see csm/model/depth.py; None = all at once
        """
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        codes = tokens[..., :-1]
        slot_codes = codes[rows, slots].flatten(0, 1)  # [B*N, K]
        embedded, slot_embeddings = self._embed(tokens, mask, slot_codes[:, :-1])
        states = self.backbone(embedded, positions, attention_mask)  # [B, S, D]
        decoder = decoder_sums(
            self._decode,
            [self.projection.weight, *self.decoder.parameters()],
            self.audio_head,
            states[rows, slots - 1].flatten(0, 1),  # [B*N, D]
            slot_embeddings,
            slot_codes,
            slot_weights.flatten(),
            chunk,
        )
        # Only now, that they need not lie beside the decoder's activations.
        c0_logits = self.codebook0_head(states[:, :-1])  # [B, S-1, V]: state p-1 predicts position p
        return loss_sums(c0_logits, codes[:, 1:], targets[:, 1:], slots - 1, slot_weights, decoder)
