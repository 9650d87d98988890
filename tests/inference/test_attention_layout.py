"""Attention kernels of GPUs lay out their results in another order than those of CPUs."""

from __future__ import annotations

from csm.frames import TurnTokens, conversation_frames
from csm.inference import cache as cache_module
from csm.inference.engine import Engine, Request
from csm.inference.sampling import Sampling
from csm.inference.weights import DecodingWeights
from tests.tiny import K, tiny_model


def test_prompts_are_read_whatever_the_layout_of_attention(monkeypatch):
    """With the heads of a position next to each other in memory, as torch's kernels for CUDA have them."""
    attention = cache_module.F.scaled_dot_product_attention

    def as_on_cuda(*args, **kwargs):
        y = attention(*args, **kwargs)  # [1, G, length * H/G, E]
        return y.transpose(1, 2).contiguous().transpose(1, 2)

    turn = TurnTokens([3, 1, 4, 1, 5], None)
    frames = conversation_frames([turn], K)
    spoken = []
    for kernel in (attention, as_on_cuda):
        monkeypatch.setattr(cache_module.F, "scaled_dot_product_attention", kernel)
        request = Request(frames.tokens, frames.mask, 6, Sampling(temperature=0.0))
        engine = Engine(DecodingWeights(tiny_model().eval(), share=True))
        engine.run(engine.submit(request))
        spoken.append(request.frames)
    assert len(spoken[0]) == 6 and spoken[0] == spoken[1]
