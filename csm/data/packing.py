"""Packing of conversations into rows (packed sequences) of a fixed length, and sampling of depth-decoder frames.

A row is a sequence of whole documents, each a conversation or a part of one. Rotary positions restart and attention is
block-diagonal, so the losses of a row are the sum of its documents' losses. All shapes are static; the empty tail of a
row belongs to no document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from csm.frames import Frames


@dataclass
class RowBatch:
    """Rows of one forward pass. B rows of S positions, K codebooks, N slots (frames for the depth decoder).

    tokens, mask:  int64 / bool [B, S, K+1], see csm/frames.py
    positions:     int64 [B, S], restarting with every document
    documents:     int64 [B, S], number of the document within its row; -1 in the empty tail
    targets:       bool [B, S], positions whose frame is predicted
    slots:         int64 [B, N], positions of the frames the depth decoder sees
    slot_weights:  float32 [B, N], inverse sampling probabilities; 0 = empty slot
    inputs:        int64 [B, S, K+1], tokens as the backbone reads them, with `data.code_noise`; None = `tokens`
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    documents: Tensor
    targets: Tensor
    slots: Tensor
    slot_weights: Tensor
    inputs: Tensor | None = None

    def attention_mask(self) -> Tensor:
        """bool [B, 1, S, S]: a position sees itself and earlier positions of its own document."""
        same = self.documents[:, :, None] == self.documents[:, None, :]
        length = self.documents.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        return (same & causal)[:, None]

    def block_mask(self) -> BlockMask:
        """The same mask for flex attention, which skips blocks of 128 x 128 positions without a common document."""
        documents = self.documents

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (documents[row, query] == documents[row, key]) & (query >= key)

        rows, length = documents.shape
        return create_block_mask(sees, rows, None, length, length, device=documents.device)

    def pin_memory(self) -> RowBatch:
        """A copy in pinned memory; DataLoader(pin_memory=True) calls this."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> RowBatch:
        """The batch on `device`. From pinned memory to CUDA the copy is asynchronous."""
        asynchronous = torch.device(device).type == "cuda"
        return self._map(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def _map(self, function: Callable[[Tensor], Tensor]) -> RowBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return RowBatch(**{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})


@dataclass
class StepBatch:
    """The data of one rank for one optimizer step.

    frames:    number of supervised frames of this rank; losses are divided by the sum over ranks
    positions: number of non-empty positions of this rank
    keys:      sample keys of each row of this rank, to report the data of a bad step
    cursor:    state of the data stream after this step, the same on all ranks, see csm/data/stream.py
    """

    microbatches: list[RowBatch]
    frames: int
    positions: int
    keys: list[list[str]]
    cursor: dict[str, Any]

    def pin_memory(self) -> StepBatch:
        """A copy whose rows are in pinned memory."""
        return replace(self, microbatches=[batch.pin_memory() for batch in self.microbatches])

    def to(self, device: torch.device | str) -> StepBatch:
        """The batch with its rows on `device`, see `RowBatch.to`."""
        return replace(self, microbatches=[batch.to(device) for batch in self.microbatches])


def num_slots(max_seq_len: int, decoder_frame_ratio: int) -> int:
    """Number of slots of a row: 1/ratio of its positions, at least two (see `select_slots`)."""
    return max(2, -(-max_seq_len // decoder_frame_ratio))


def select_slots(targets: Tensor, eos: Tensor, slots: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Samples the frames of one row that the depth decoder sees.

    targets, eos: bool [S]. Returns positions int64 [slots] and weights float32 [slots].

    All supervised end-of-speech frames are chosen (a model that rarely sees them never learns to stop); the other
    slots are filled with other supervised frames, uniformly without replacement. Weights are inverse inclusion
    probabilities, so weighted sums are unbiased. If end-of-speech frames exceed half of the slots (many turns shorter
    than two frame ratios), they are sampled as well, with their weight, which keeps the sums unbiased.
    """
    ends = torch.nonzero(targets & eos).flatten().numpy()
    others = torch.nonzero(targets & ~eos).flatten().numpy()
    others_slots = min(len(others), max(slots - len(ends), slots // 2))
    ends_slots = min(len(ends), slots - others_slots)
    chosen = np.zeros(slots, dtype=np.int64)
    weights = np.zeros(slots, dtype=np.float32)
    start = 0
    for candidates, count in ((ends, ends_slots), (others, others_slots)):
        if count:
            chosen[start : start + count] = np.sort(rng.choice(candidates, count, replace=False))
            weights[start : start + count] = len(candidates) / count
            start += count
    chosen[start:] = 1  # empty slots: any valid position, with weight 0
    return torch.from_numpy(chosen), torch.from_numpy(weights)


def pack_row(
    documents: list[Frames],
    max_seq_len: int,
    num_codebooks: int,
    slots: int,
    rng: np.random.Generator,
) -> RowBatch:
    """Packs documents of at most `max_seq_len` positions in total into a batch of one row, which may be empty."""
    total = sum(len(document) for document in documents)
    assert total <= max_seq_len, f"documents of {total} positions exceed a row of {max_seq_len}"
    tokens = torch.zeros(max_seq_len, num_codebooks + 1, dtype=torch.int64)
    mask = torch.zeros(max_seq_len, num_codebooks + 1, dtype=torch.bool)
    positions = torch.zeros(max_seq_len, dtype=torch.int64)
    numbers = torch.full((max_seq_len,), -1, dtype=torch.int64)
    targets = torch.zeros(max_seq_len, dtype=torch.bool)
    eos = torch.zeros(max_seq_len, dtype=torch.bool)
    start = 0
    for number, document in enumerate(documents):
        end = start + len(document)
        tokens[start:end], mask[start:end] = document.tokens, document.mask
        targets[start:end], eos[start:end] = document.targets, document.eos
        positions[start:end] = torch.arange(len(document))
        numbers[start:end] = number
        start = end
    chosen, weights = select_slots(targets, eos, slots, rng)
    return RowBatch(
        tokens[None], mask[None], positions[None], numbers[None], targets[None], chosen[None], weights[None]
    )


def stack_rows(rows: list[RowBatch]) -> RowBatch:
    """Concatenates batches along B.

    If there is a slot for every position (the depth decoder sees every frame), trailing slots that no row fills are
    removed, because text positions and tails would cost the depth decoder as much as frames do. With fewer slots the
    shapes stay static.
    """
    slots = rows[0].slots.shape[1]
    if slots == rows[0].tokens.shape[1]:
        slots = max(1, max(int((row.slot_weights > 0).sum(dim=1).max()) for row in rows))
    inputs = [row.inputs for row in rows if row.inputs is not None]  # all rows' or nobody's
    return RowBatch(
        tokens=torch.cat([row.tokens for row in rows]),
        mask=torch.cat([row.mask for row in rows]),
        positions=torch.cat([row.positions for row in rows]),
        documents=torch.cat([row.documents for row in rows]),
        targets=torch.cat([row.targets for row in rows]),
        slots=torch.cat([row.slots[:, :slots] for row in rows]),  # filled slots come first
        slot_weights=torch.cat([row.slot_weights[:, :slots] for row in rows]),
        inputs=torch.cat(inputs) if inputs else None,
    )
