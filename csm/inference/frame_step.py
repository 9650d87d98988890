"""One frame for all slots: a position of the backbone, codebook 0, the depth decoder's codebooks, and every draw.

    inputs [B, D] --backbone--> state --codebook0_head, draw--> c_0
    state, c_0, ..., c_{n-2} --depth decoder, heads, draws--> c_1 ... c_{n-1}
    inputs for the next step = sum of the frame's embeddings

Everything that differs between slots or changes from step to step is a tensor on the device, and nothing is asked of
the device on the host: a step can be compiled, or captured in a CUDA graph (csm/inference/modes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.inference.cache import KVCache
from csm.inference.packing import PACKED_FROM, pack, packable
from csm.inference.sampling import SlotGuidance, SlotSampling
from csm.inference.weights import Attend, DecodingStack, DecodingWeights


@dataclass(frozen=True)
class StepShape:
    """Constants that a step is specialized for; everything else may change without compiling or capturing again.

    batch:      the first B slots take part
    attended:   positions of the cache that are looked at
    candidates: see `SlotSampling.sample`
    guided:     whether requests with classifier-free guidance are among them
    """

    batch: int
    attended: int
    candidates: int
    guided: bool = False


class SlotState:
    """Tensors that a step reads and writes for every slot, in place.

    inputs:      [slots, D], what the backbone reads next
    positions:   int64 [slots], where it stands in the cache
    active:      int64 [slots], 1 where a request is being spoken: other slots compute, and stay where they are
    temperature: fp32 [slots, 1], topk: int64 [slots, 1], see `SlotSampling`
    with_text, without_text: int64 [slots], scale: fp32 [slots, 1], see `SlotGuidance`
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
        self.with_text, self.without_text = torch.arange(slots, device=device), torch.arange(slots, device=device)
        self.scale = torch.ones(slots, 1, device=device)
        self.noise = torch.zeros(slots, num_codebooks, size, device=device)
        self.frame = torch.zeros(slots, num_codebooks, dtype=torch.int64, device=device)

    def sampling(self, batch: int, guided: bool) -> SlotSampling:
        """The options of the first `batch` slots."""
        guidance = SlotGuidance(self.with_text[:batch], self.without_text[:batch], self.scale[:batch])
        return SlotSampling(self.temperature[:batch], self.topk[:batch], guidance if guided else None)


class Codebook(NamedTuple):
    """Inputs of the depth decoder for one codebook, as tensors: one compiled function serves all codebooks.

    first_row: int64 [], the first row of its embeddings in the table
    rope:      factors of its position, which is its number, the same in every frame
    head:      [codebook_size, d]
    """

    first_row: Tensor
    rope: tuple[Tensor, Tensor]
    head: Tensor


class Depth(NamedTuple):
    """The depth decoder as it is computed for one number of slots.

    attend: at each of its positions, which are the same in all slots and all frames
    """

    stack: DecodingStack
    codebooks: list[Codebook]
    attend: list[Attend]


class FrameStep:
    """The step over given weights, cache and state.

    num_codebooks: n, at most the model's. Codebooks from n on are not generated, and the next backbone position embeds
    those that were: what a position without them sums up to, as in training's mask.
    """

    def __init__(self, weights: DecodingWeights, cache: KVCache, num_codebooks: int) -> None:
        self.weights, self.cache, self.num_codebooks = weights, cache, num_codebooks
        self.state = SlotState(weights, cache.slots, num_codebooks)
        config, device = weights.config, weights.device
        self.depth_cache = KVCache(config.decoder, cache.slots, num_codebooks, weights.dtype, device)
        # Ids from codebook_size on are reserved: the codec cannot decode them, so they are never drawn.
        self.first_head = weights.codebook0_head[: config.codebook_size].T.contiguous().T
        numbers = torch.arange(num_codebooks, device=device)
        first_rows = numbers * config.audio_vocab_size
        ropes = list(zip(*weights.decoder.rotations(numbers), strict=True))
        self.first_rope = ropes[0]
        self.codebooks = [
            Codebook(first_rows[n], ropes[n], weights.audio_head[n - 1, :, : config.codebook_size].T)
            for n in range(1, num_codebooks)
        ]
        self._depths: dict[int, Depth] = {}
        self._first_code, self._next_code = self.first_code, self.next_code
        self._compiled = False
        self._packed: tuple[DecodingStack, list[Codebook]] | None = None

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the step in two parts, each whole: the backbone with codebook 0, and a later codebook, which is run
        n - 1 times. As one graph, the compiler would take n - 1 times as long for the second."""
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 64)  # one for each `StepShape`
        compiler = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        self._first_code, self._next_code = compiler(self.first_code), compiler(self.next_code)
        self._compiled = True

    def __call__(self, shape: StepShape) -> None:
        """Computes the next frame of the first `shape.batch` slots into `state.frame`."""
        state, batch = self.state, shape.batch
        sampling = state.sampling(batch, shape.guided)
        noise = state.noise[:batch].unbind(1)
        inputs, positions = state.inputs[:batch], state.positions[:batch]
        depth = self.depth(batch)
        code, x = self._first_code(inputs, positions, depth, noise[0], sampling, shape.attended, shape.candidates)
        codes = [code]
        for number, codebook in enumerate(depth.codebooks, start=1):
            attend = depth.attend[number]
            code, x = self._next_code(x, codebook, depth.stack, attend, noise[number], sampling, shape.candidates)
            codes.append(code)
        self.finish(codes, shape)

    def depth(self, batch: int) -> Depth:
        """The depth decoder for `batch` slots."""
        if batch not in self._depths:
            self._depths[batch] = self._compiled_depth(batch) if self._compiled else self._eager_depth(batch)
        return self._depths[batch]

    def _compiled_depth(self, batch: int) -> Depth:
        """Positions are tensors, so that one function serves all of them."""
        positions = torch.arange(self.num_codebooks, device=self.weights.device)
        attend: list[Attend] = [self.depth_cache.single(p.expand(batch), self.num_codebooks) for p in positions]
        return Depth(self.weights.decoder, self.codebooks, attend)

    def _eager_depth(self, batch: int) -> Depth:
        attend: list[Attend] = [self.depth_cache.shared(p, batch) for p in range(self.num_codebooks)]
        stack = self.weights.decoder
        if batch < PACKED_FROM or not packable(stack.blocks[0].qkv):
            return Depth(stack, self.codebooks, attend)
        if self._packed is None:
            codebooks = [codebook._replace(head=pack(codebook.head)) for codebook in self.codebooks]
            self._packed = stack.packed(), codebooks
        stack, codebooks = self._packed
        return Depth(stack, codebooks, attend)

    def first_code(
        self,
        inputs: Tensor,
        positions: Tensor,
        depth: Depth,
        noise: Tensor,
        sampling: SlotSampling,
        attended: int,
        candidates: int,
    ) -> tuple[Tensor, Tensor]:
        """Codes `[B]` of codebook 0, and what the depth decoder reads next `[B, d]`, from the inputs `[B, D]`."""
        weights = self.weights
        rope = weights.backbone.rotations(positions)  # [B, H+2G, E]
        hidden = weights.backbone(inputs, rope, self.cache.single(positions, attended))
        code = sampling.sample(F.linear(hidden, self.first_head), noise, candidates)
        depth.stack(F.linear(hidden, weights.projection), self.first_rope, depth.attend[0])  # fills its cache
        return code, F.embedding(code, weights.projected_embeddings)

    def next_code(
        self,
        x: Tensor,
        codebook: Codebook,
        stack: DecodingStack,
        attend: Attend,
        noise: Tensor,
        sampling: SlotSampling,
        candidates: int,
    ) -> tuple[Tensor, Tensor]:
        """Codes `[B]` of a later codebook, and what the depth decoder reads next, from `x [B, d]`."""
        hidden = stack(x, codebook.rope, attend)
        code = sampling.sample(stack.product(hidden, codebook.head), noise, candidates)
        return code, F.embedding(code + codebook.first_row, self.weights.projected_embeddings)

    def finish(self, codes: list[Tensor], shape: StepShape) -> None:
        """Writes the frame `n x [B]` and moves on to the next."""
        state, batch = self.state, shape.batch
        frame = torch.stack(codes, dim=1)  # [B, n]
        state.frame[:batch] = frame
        state.inputs[:batch] = self.weights.embed_frames(frame)
        state.positions[:batch] += state.active[:batch]
