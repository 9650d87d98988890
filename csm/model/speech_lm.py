"""Common parts of the models of all layouts: embeddings, the backbone, heads, and how losses are asked for.

    tokens, mask [B, S, K+1] --embed--> [B, S, D] --backbone--> states h [B, S, D]

CSM (csm/model/csm.py) adds a depth decoder; SingleStack (csm/model/single_stack.py) predicts all codes from the states.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.arrangement import frame_stride
from csm.config import CSMConfig
from csm.model.init import draw
from csm.model.loss import BackboneSums, DecoderFrames, DecoderSums, LossSums, join
from csm.model.transformer import AttentionMask, Transformer


class SpeechLM(nn.Module):
    """The base of CSM and SingleStack.

    `model(...)` computes the training loss, `model(..., method="backbone_losses")` and `method="decoder_losses"` its
    two halves (see `forward`). One audio embedding table, indexed `code + codebook * V`, holds all codebooks.
    """

    audio_head: nn.Parameter
    """[K-1, width, V], the heads of codebooks 1..K-1; set by the model itself."""

    def __init__(self, config: CSMConfig) -> None:
        super().__init__()
        self.config = config
        width, vocab = config.backbone.dim, config.audio_vocab_size
        self.text_embeddings = nn.Embedding(config.text_vocab_size, width)
        self.audio_embeddings = nn.Embedding(config.num_codebooks * vocab, width)
        self.backbone = Transformer(config.backbone, config.rope, config.norm_eps)
        self.codebook0_head = nn.Linear(width, vocab, bias=False)

    def stacks(self) -> list[Transformer]:
        """The backbone, and the depth decoder if there is one."""
        return [self.backbone]

    def init_weights(self) -> None:
        """Initializes every parameter: normal(0, initializer_std), norms 1, and the projections that write into
        the residual stream smaller by sqrt(2 * layers), so that its variance does not grow with depth (GPT-2)."""
        std = self.config.initializer_std
        normal = partial(nn.init.normal_, std=std)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                draw(module.weight, normal)
        draw(self.audio_head, normal)
        for stack in self.stacks():
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

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[K-1, M, V]` of codebooks 1..K-1 by their heads, from the states `[K-1, M, width]` before them."""
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

        tokens, mask:   [B, S, K+1], see csm/frames.py and csm/arrangement.py
        positions:      [B, S] int, restarting with every document
        targets:        [B, S] bool, places of the frames that are predicted (never position 0)
        slots:          [B, N] int, places of the frames the depth decoder sees; without one, of all that are predicted
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
        """The half of `losses` up to codebook 0, and the frames whose other codebooks are to be predicted."""
        raise NotImplementedError

    def decoder_losses(self, frames: DecoderFrames) -> DecoderSums:
        """The half of `losses` of codebooks 1..K-1, for any part of the frames."""
        raise NotImplementedError

    def shifted_losses(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        targets: Tensor,
        shifts: tuple[int, ...],
        attention_mask: AttentionMask | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of codebook 0 with the labels of frames `shift` positions later, for csm/stability/labels.py.

        Returns the losses [len(shifts), B, S-1] in nats, of the frames at positions 1..S-1, and which of them count,
        bool [B, S-1]: predicted frames that have a neighbor at every shift. Losses of the others are 0.
        """
        states = self.backbone_states(tokens, mask, positions, attention_mask)[:, :-1]
        log_probs = self.codebook0_head(states).flatten(0, 1).float().log_softmax(-1)  # [B*(S-1), V]
        codes, frames = tokens[:, 1:, 0], mask[:, 1:, 0]
        usable = targets[:, 1:].clone()
        stride = frame_stride(self.config.layout, self.config.num_codebooks)
        for shift in shifts:  # the same frames for all of them
            usable &= frames.roll(-shift * stride, 1)
        usable[:, :stride] = usable[:, -stride:] = False  # where rolling brings the other end of the row
        losses = [
            F.nll_loss(log_probs, torch.where(usable, codes.roll(-shift * stride, 1), -100).flatten(), reduction="none")
            for shift in shifts
        ]
        return torch.stack(losses).view(len(shifts), *codes.shape), usable
