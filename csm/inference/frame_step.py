"""One frame for all slots: a position of the backbone, codebook 0, the depth decoder's codebooks, and every draw.

    inputs [B, D] --backbone--> state --codebook0_head, draw--> c_0
    state, c_0, ..., c_{n-2} --depth decoder, heads, draws--> c_1 ... c_{n-1}
    inputs for the next step = sum of the frame's embeddings

Everything that differs between slots or changes from step to step is a tensor on the device, and nothing is asked of
the device on the host: a step can be compiled, or captured in a CUDA graph (csm/inference/modes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.inference.cache import KVCache
from csm.inference.sampling import SlotSampling
from csm.inference.weights import Attend, DecodingWeights


@dataclass(frozen=True)
class StepShape:
    """Constants that a step is specialized for; everything else may change without compiling or capturing again.

    batch:      the first B slots take part
    attended:   positions of the cache that are looked at
    candidates: see `SlotSampling.sample`
    """

    batch: int
    attended: int
    candidates: int


class SlotState:
    """Tensors that a step reads and writes for every slot, in place.

    inputs:      [slots, D], what the backbone reads next
    positions:   int64 [slots], where it stands in the cache
    active:      int64 [slots], 1 where a request is being spoken: other slots compute, and stay where they are
    temperature: fp32 [slots, 1], topk: int64 [slots, 1], see `SlotSampling`
    noise:       fp32 [slots, n, codebook_size], filled anew before every step, 0 for greedy slots
    frame:       int64 [slots, n], the codes drawn last
    """

    def __init__(self, weights: DecodingWeights, slots: int, num_codebooks: int) -> None:
        device, size = weights.device, weights.config.codebook_size
        self.inputs = torch.zeros(slots, weights.config.backbone.dim, dtype=weights.dtype, device=device)
        self.positions = torch.zeros(slots, dtype=torch.int64, device=device)
        self.active = torch.zeros(slots, dtype=torch.int64, device=device)
        self.temperature = torch.ones(slots, 1, device=device)
        self.topk = torch.ones(slots, 1, dtype=torch.int64, device=device)
        self.noise = torch.zeros(slots, num_codebooks, size, device=device)
        self.frame = torch.zeros(slots, num_codebooks, dtype=torch.int64, device=device)


class Codebook(NamedTuple):
    """Inputs of the depth decoder for one codebook, as tensors: one compiled function serves all codebooks.

    first_row: int64 [], the first row of its embeddings in the table
    rope:      factors of its position, which is its number, the same in every frame
    head:      [d, codebook_size]
    """

    first_row: Tensor
    rope: tuple[Tensor, Tensor]
    head: Tensor


class FrameStep:
    """The step over given weights, cache and state.

    num_codebooks: n, at most the model's. Codebooks from n on are not generated, and the next backbone position embeds
    those that were: what a position without them sums up to, as in training's mask.
    """

    def __init__(self, weights: DecodingWeights, cache: KVCache, num_codebooks: int) -> None:
        self.weights, self.cache, self.num_codebooks = weights, cache, num_codebooks
        self.state = SlotState(weights, cache.slots, num_codebooks)
        config, device = weights.config, weights.device
        self.depth = KVCache(config.decoder, cache.slots, num_codebooks, weights.dtype, device)
        # Ids from codebook_size on are reserved: the codec cannot decode them, so they are never drawn.
        self.first_head = weights.codebook0_head.T[:, : config.codebook_size].contiguous()
        numbers = torch.arange(num_codebooks, device=device)
        first_rows = numbers * config.audio_vocab_size
        ropes = list(zip(*weights.decoder.rotations(numbers), strict=True))
        self.first_rope = ropes[0]
        self.codebooks = [
            Codebook(first_rows[n], ropes[n], weights.audio_head[n - 1, :, : config.codebook_size])
            for n in range(1, num_codebooks)
        ]
        self._depth_attention: dict[int, list[Attend]] = {}
        self._first_code, self._next_code = self.first_code, self.next_code
        self._compiled = False

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the step in two parts, each whole: the backbone with codebook 0, and a later codebook, which is run
        n - 1 times. As one graph, the compiler would take n - 1 times as long for the second."""
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 64)  # one for each `StepShape`
        self._first_code = torch.compile(self.first_code, fullgraph=True, dynamic=False, backend=backend)
        self._next_code = torch.compile(self.next_code, fullgraph=True, dynamic=False, backend=backend)
        self._compiled = True

    def __call__(self, shape: StepShape) -> None:
        """Computes the next frame of the first `shape.batch` slots into `state.frame`."""
        state, batch = self.state, shape.batch
        sampling = SlotSampling(state.temperature[:batch], state.topk[:batch])
        noise = state.noise[:batch].unbind(1)
        inputs, positions = state.inputs[:batch], state.positions[:batch]
        attention = self.depth_attention(batch)
        code, x = self._first_code(
            inputs, positions, attention[0], noise[0], sampling, shape.attended, shape.candidates
        )
        codes = [code]
        for number, codebook in enumerate(self.codebooks, start=1):
            code, x = self._next_code(x, codebook, attention[number], noise[number], sampling, shape.candidates)
            codes.append(code)
        self.finish(codes, shape)

    def depth_attention(self, batch: int) -> list[Attend]:
        """Attention at every position of the depth decoder, the same in all slots and all frames.

        Compiled, positions are tensors, so that one function serves all of them.
        """
        if batch not in self._depth_attention:
            positions = torch.arange(self.num_codebooks, device=self.weights.device)
            self._depth_attention[batch] = [
                self.depth.single(position.expand(batch), self.num_codebooks)
                if self._compiled
                else self.depth.shared(number, batch)
                for number, position in enumerate(positions)
            ]
        return self._depth_attention[batch]

    def first_code(
        self,
        inputs: Tensor,
        positions: Tensor,
        attend: Attend,
        noise: Tensor,
        sampling: SlotSampling,
        attended: int,
        candidates: int,
    ) -> tuple[Tensor, Tensor]:
        """Codes `[B]` of codebook 0, and what the depth decoder reads next `[B, d]`, from the inputs `[B, D]`."""
        weights = self.weights
        rope = weights.backbone.rotations(positions)  # [B, H+2G, E]
        hidden = weights.backbone(inputs, rope, self.cache.single(positions, attended))
        code = sampling.sample(hidden @ self.first_head, noise, candidates)
        weights.decoder(F.linear(hidden, weights.projection), self.first_rope, attend)  # fills its cache
        return code, F.embedding(code, weights.projected_embeddings)

    def next_code(
        self,
        x: Tensor,
        codebook: Codebook,
        attend: Attend,
        noise: Tensor,
        sampling: SlotSampling,
        candidates: int,
    ) -> tuple[Tensor, Tensor]:
        """Codes `[B]` of a later codebook, and what the depth decoder reads next, from `x [B, d]`."""
        hidden = self.weights.decoder(x, codebook.rope, attend)
        code = sampling.sample(hidden @ codebook.head, noise, candidates)
        return code, F.embedding(code + codebook.first_row, self.weights.projected_embeddings)

    def finish(self, codes: list[Tensor], shape: StepShape) -> None:
        """Writes the frame `n x [B]` and moves on to the next."""
        state, batch = self.state, shape.batch
        frame = torch.stack(codes, dim=1)  # [B, n]
        state.frame[:batch] = frame
        state.inputs[:batch] = self.weights.embed_frames(frame)
        state.positions[:batch] += state.active[:batch]
