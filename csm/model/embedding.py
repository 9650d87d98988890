"""Embeddings of frames: sums over codebooks for the backbone, single codes for the depth decoder, from one table."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FrameEmbeddings(torch.autograd.Function):
    """(summed [N, D], single [M, n, D]) from `table [R, D]`, `rows [N, K]` with `present [N, K]` in the table's dtype,
    and `single_rows [M, n]`.

    As one operation, because the table is by far the largest of the audio parameters: it gets a single dense gradient
    instead of one for each use, and `[N, K, D]` exists in neither direction.
    """

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
        # In fp32 also where the table is bfloat16 (sharded training): a frequent code adds up thousands of terms.
        gradient = summed.new_zeros(ctx.table_shape, dtype=torch.float32)
        for codebook in range(rows.shape[1]):
            gradient.index_add_(0, rows[:, codebook], (summed * present[:, codebook, None]).float())
        gradient.index_add_(0, single_rows.flatten(), single.flatten(0, 1).float())
        return gradient.to(summed.dtype), None, None, None
