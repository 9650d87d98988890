"""The frame step asks nothing of the device, compiles whole, and says the same compiled."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from csm.config import CSMConfig, TransformerConfig
from csm.inference.cache import KVCache
from csm.inference.engine import Engine, Request
from csm.inference.frame_step import FrameStep, StepShape
from csm.inference.sampling import Sampling
from csm.inference.weights import DecodingWeights
from csm.model.csm import CSM
from tests.inference.test_engine import prompt
from tests.tiny import CODEBOOK_SIZE, TEXT_VOCAB, K, tiny_config


def small_model() -> CSM:
    """One layer each: compiling takes its time."""
    torch.manual_seed(1)
    config = CSMConfig(
        backbone=TransformerConfig(layers=1, dim=48, heads=6, kv_heads=3, ffn_dim=72),
        decoder=TransformerConfig(layers=1, dim=32, heads=4, kv_heads=2, ffn_dim=56),
        text_vocab_size=TEXT_VOCAB,
        codebook_size=CODEBOOK_SIZE,
        num_codebooks=K,
        max_seq_len=160,
    )
    model = CSM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    return model.eval()


def schedule(engine: Engine, longest: int) -> list[list[list[int]]]:
    """Requests that fill the slots, empty them and come again; one of them is as long as it may be."""
    made = []
    for wave, count in enumerate((3, 1, 2)):
        for number in range(count):
            seed = 10 * wave + number
            tokens, mask = prompt(seed, 3 + seed % 4, spoken=longest - 40 if seed == 1 else 4)
            sampling = Sampling(0.0 if number == 2 else 0.9, 5, seed)
            made.append(engine.submit(Request(tokens, mask, 3 + 2 * number, sampling)))
        engine.run(*made)
    return [request.frames for request in made]


def test_the_step_runs_without_values():
    """On the meta device, where a read by the host is an error."""
    with torch.device("meta"):
        model = CSM(tiny_config())
    weights = DecodingWeights(model, share=False)
    cache = KVCache(model.config.backbone, 4, 160, weights.dtype, weights.device)
    step = FrameStep(weights, cache, K)
    with torch.inference_mode():
        for candidates in (0, 5, CODEBOOK_SIZE):
            step(StepShape(2, 128, candidates))
    assert step.state.frame.is_meta


def check_compiled(backend: str, longest: int) -> None:
    eager = Engine(DecodingWeights(small_model(), share=True), slots=2)
    compiled = Engine(DecodingWeights(small_model(), share=True), slots=2)
    compiled.mode = "compiled"
    compiled.step.compile(backend)
    torch._dynamo.reset()
    counters.clear()
    compiled.warm_up(longest)
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        found = schedule(compiled, longest)
    assert found == schedule(eager, longest)


@pytest.mark.slow
def test_the_step_compiles_whole_and_only_while_warming_up():
    check_compiled("aot_eager", longest=160)  # two buckets of lengths


@pytest.mark.slow
def test_the_compiled_step_says_the_same():
    check_compiled("inductor", longest=100)


def test_graphs_need_cuda():
    with pytest.raises(ValueError, match="mode=cuda_graph needs a model on CUDA, this one is on cpu"):
        Engine(DecodingWeights(small_model(), share=True), mode="cuda_graph")
