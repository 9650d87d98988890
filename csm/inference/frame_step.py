"""One frame for all slots: a position of the backbone, codebook 0, the depth decoder's codebooks, and every draw.

    inputs [B, D] --backbone--> state --codebook0_head, draw--> c_0
    state, c_0, ..., c_{n-2} --depth decoder, heads, draws--> c_1 ... c_{n-1}
    inputs for the next step = sum of the frame's embeddings

Everything that differs between slots or changes from step to step is a tensor on the device, and nothing is asked of
the device on the host: a step can be compiled whole or captured in a CUDA graph (csm/inference/modes.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.inference.cache import KVCache
from csm.inference.sampling import SlotSampling
from csm.inference.weights import DecodingWeights


@dataclass(frozen=True)
class StepShape:
    """What a step is specialized for; everything else may change without compiling or capturing again.

    batch:      the first B slots take part
    attended:   positions of the cache that are looked at
    candidates: see `SlotSampling.sample`
    """

    batch: int
    attended: int
    candidates: int


class SlotState:
    """What a step reads and writes for every slot, in place.

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


class FrameStep:
    """The step over given weights, cache and state.

    num_codebooks: n, at most the model's. Codebooks from n on are not generated, and the next backbone position embeds
    those that were: what a position without them sums up to, as in training's mask.
    """

    def __init__(self, weights: DecodingWeights, cache: KVCache, num_codebooks: int) -> None:
        self.weights, self.cache, self.num_codebooks = weights, cache, num_codebooks
        self.state = SlotState(weights, cache.slots, num_codebooks)
        depth = weights.config.decoder
        self.depth = KVCache(depth, cache.slots, num_codebooks, weights.dtype, weights.device)
        # Rotary positions of the depth decoder are the same in every frame.
        positions = torch.arange(num_codebooks, device=weights.device)
        self.depth_rope = list(zip(*weights.decoder.rotations(positions), strict=True))

    def __call__(self, shape: StepShape) -> None:
        """Computes the next frame of the first `shape.batch` slots into `state.frame`."""
        state, batch, weights = self.state, shape.batch, self.weights
        sampling = SlotSampling(state.temperature[:batch], state.topk[:batch])
        hidden = self._backbone(shape)  # [B, D]
        code = self._draw(F.linear(hidden, weights.codebook0_head.weight), 0, sampling, shape)
        codes = [code]
        self._depth_position(F.linear(hidden, weights.projection.weight), 0)
        for codebook in range(1, self.num_codebooks):
            row = code + (codebook - 1) * weights.config.audio_vocab_size
            hidden = self._depth_position(F.embedding(row, weights.projected_embeddings), codebook)  # [B, d]
            code = self._draw(hidden @ weights.audio_head[codebook - 1], codebook, sampling, shape)
            codes.append(code)
        frame = torch.stack(codes, dim=1)  # [B, n]
        state.frame[:batch] = frame
        state.inputs[:batch] = weights.embed_frames(frame)
        state.positions[:batch] += state.active[:batch]

    def _backbone(self, shape: StepShape) -> Tensor:
        positions = self.state.positions[: shape.batch]
        stack, attend = self.weights.backbone, self.cache.single(positions, shape.attended)
        rope = stack.rotations(positions[:, None])  # [B, 1, H+2G, E]
        return stack(self.state.inputs[: shape.batch, None], rope, attend)[:, 0]

    def _depth_position(self, x: Tensor, codebook: int) -> Tensor:
        """One position of the depth decoder: `x [B, d]` -> its state `[B, d]`."""
        attend = self.depth.same(codebook)
        return self.weights.decoder(x[:, None], self.depth_rope[codebook], attend)[:, 0]

    def _draw(self, logits: Tensor, codebook: int, sampling: SlotSampling, shape: StepShape) -> Tensor:
        # Ids from codebook_size on are reserved: the codec cannot decode them, so they are never drawn.
        logits = logits[:, : self.weights.config.codebook_size]
        return sampling.sample(logits, self.state.noise[: shape.batch, codebook], shape.candidates)
