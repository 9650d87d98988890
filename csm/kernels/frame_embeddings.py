"""Embeddings of frames for both stacks as one operation, so that the audio table gets a single dense gradient.

The table (codebooks x vocabulary rows) is by far the largest of the audio parameters. Two lookups differentiated by
autograd give it two gradients of its size and add them up; here both are added into one, in fp32 also where the table
is bfloat16: a frequent code adds up thousands of terms.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.model.csm import CSM


def embed_frames(
    model: CSM, tokens: Tensor, mask: Tensor, codes: Tensor, function: type[FrameEmbeddings]
) -> tuple[Tensor, Tensor]:
    """`CSM.embed_rows` by `function`."""
    batch, length, columns = tokens.shape
    table = model.audio_embeddings.weight
    rows = model.table_rows(tokens[..., :-1]).view(-1, columns - 1)  # [B*S, K]
    present = mask[..., :-1].reshape(-1, columns - 1).to(table.dtype)
    audio, single = function.apply(table, rows, present, model.table_rows(codes))
    return model.embed_text(tokens, mask) + audio.view(batch, length, -1), single


class FrameEmbeddings(torch.autograd.Function):
    """(summed [N, D], single [M, n, D]) from `table [R, D]`, `rows [N, K]` with `present [N, K]` in the table's dtype,
    and `single_rows [M, n]`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, present: Tensor, single_rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, present, single_rows)
        ctx.table_shape = table.shape
        summed = F.embedding_bag(rows, table, mode="sum", per_sample_weights=present)
        return summed, F.embedding(single_rows, table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, summed: Tensor, single: Tensor) -> tuple[Tensor | None, ...]:
        rows, present, single_rows = ctx.saved_tensors
        gradient = summed.new_zeros(ctx.table_shape, dtype=torch.float32)
        for codebook in range(rows.shape[1]):
            gradient.index_add_(0, rows[:, codebook], (summed * present[:, codebook, None]).float())
        gradient.index_add_(0, single_rows.flatten(), single.flatten(0, 1).float())
        return gradient.to(summed.dtype), None, None, None
