"""Slots: what a request says is the same alone, in any slot and beside any neighbours, whenever they come and go."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csm.frames import TurnTokens, conversation_frames
from csm.inference import engine as engine_module
from csm.inference.engine import Engine, Request
from csm.inference.guards import Guards, RunawayWatch
from csm.inference.sampling import Sampling
from csm.inference.weights import DecodingWeights
from csm.model.csm import CSM
from tests.tiny import CODEBOOK_SIZE, TEXT_VOCAB, K, tiny_model


@lru_cache
def tiny_weights() -> DecodingWeights:
    return DecodingWeights(tiny_model().eval(), share=True)


def prompt(seed: int, length: int = 4, spoken: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(TEXT_VOCAB, (length,), generator=generator).tolist()
    codes = torch.randint(1, CODEBOOK_SIZE, (K, spoken), generator=generator)
    turns = [TurnTokens([1, 2], codes)] if spoken else []
    frames = conversation_frames([*turns, TurnTokens(text, None)], K)
    return frames.tokens, frames.mask


def request(seed: int, max_frames: int = 10, spoken: int = 0, **options: float) -> Request:
    options = {"temperature": 0.9, "topk": 5, "seed": seed} | options
    return Request(*prompt(seed, 3 + seed % 5, spoken), max_frames, Sampling(**options))


@lru_cache
def alone(seed: int, max_frames: int, spoken: int, temperature: float, topk: int) -> list[list[int]]:
    spoken_alone = request(seed, max_frames, spoken, temperature=temperature, topk=topk)
    engine = Engine(tiny_weights())
    engine.run(engine.submit(spoken_alone))
    return spoken_alone.frames


requests = st.tuples(
    st.integers(0, 30),  # seed, of prompt and draws
    st.integers(1, 12),  # frames
    st.sampled_from([0, 3, 20]),  # frames of context
    st.sampled_from([(0.0, 50), (0.9, 5), (1.3, 0), (0.5, 1), (0.9, 12)]),
)
arrivals = st.lists(
    st.tuples(requests, st.integers(0, 6), st.one_of(st.none(), st.integers(0, 8))),  # when it comes, and is cancelled
    min_size=1,
    max_size=9,
)


@settings(max_examples=40, deadline=None)
@given(arrivals, st.integers(1, 4), st.sampled_from([4, 512]))
def test_any_schedule_says_what_each_request_says_alone(schedule, slots, chunk):
    engine, found = Engine(tiny_weights(), slots), []
    engine_module.PREFILL_CHUNK, before = chunk, engine_module.PREFILL_CHUNK
    try:
        for time in range(400):
            for options, arrival, _ in schedule:
                if arrival == time:
                    (seed, max_frames, spoken, (temperature, topk)) = options
                    found.append(engine.submit(request(seed, max_frames, spoken, temperature=temperature, topk=topk)))
            coming = [entry for entry in sorted(schedule, key=lambda entry: entry[1]) if entry[1] <= time]
            for one, (_, arrival, patience) in zip(found, coming, strict=True):
                if patience is not None and arrival + patience == time:
                    engine.cancel(one)
            if not engine.advance() and time > 6:
                break
    finally:
        engine_module.PREFILL_CHUNK = before
    for one, (options, _, patience) in zip(found, sorted(schedule, key=lambda entry: entry[1]), strict=True):
        seed, max_frames, spoken, (temperature, topk) = options
        expected = alone(seed, max_frames, spoken, temperature, topk)
        if one.finished == "cancelled":
            assert patience is not None and one.frames == expected[: len(one.frames)]
        else:
            assert one.frames == expected and one.finished == ("length" if len(expected) == max_frames else "stop")
    assert engine.slots == [None] * slots and not engine.waiting
    state = engine.step.state
    assert (
        not state.active.any() and not state.noise.any() and (state.temperature == 1).all() and (state.topk == 1).all()
    )


def test_waiting_requests_can_be_cancelled():
    engine = Engine(tiny_weights(), slots=1)
    first, second, third = (engine.submit(request(seed)) for seed in range(3))
    engine.advance()
    engine.cancel(second)
    engine.run(first, third)
    assert second.finished == "cancelled" and second.frames == [] and third.frames == alone(2, 10, 0, 0.9, 5)
    engine.cancel(third)
    assert third.finished == "length"


def test_codebooks_that_no_codec_decodes_are_never_drawn():
    model = tiny_model()
    with torch.no_grad():  # ids from CODEBOOK_SIZE on become the likeliest
        model.codebook0_head.weight[CODEBOOK_SIZE:] = 5 * model.codebook0_head.weight[:3].abs()
        model.audio_head[..., CODEBOOK_SIZE:] = 5 * model.audio_head[..., :3].abs()
    engine = Engine(DecodingWeights(model.eval(), share=False))
    one = request(1, 30, topk=0, temperature=2.0)
    engine.run(engine.submit(one))
    assert one.codes().max() < CODEBOOK_SIZE


@torch.no_grad()
def first_codebooks(model: CSM, tokens: torch.Tensor, mask: torch.Tensor, steps: int, n: int) -> torch.Tensor:
    """Greedy generation of the first n codebooks from the training forward: the others are absent from positions."""
    frames = []
    present = torch.tensor([[True] * n + [False] * (K + 1 - n)])
    for _ in range(steps):
        state = model.backbone_states(tokens[None], mask[None], torch.arange(len(tokens))[None])[:, -1]
        frame = torch.zeros(1, K + 1, dtype=torch.int64)
        frame[0, 0] = model.codebook0_head(state)[0, :CODEBOOK_SIZE].argmax()
        for codebook in range(1, n):
            frame[0, codebook] = model.decoder_logits(state, frame[:, :-2])[codebook - 1, 0, :CODEBOOK_SIZE].argmax()
        frames.append(frame[0, :n])
        tokens, mask = torch.cat((tokens, frame)), torch.cat((mask, present))
    return torch.stack(frames, dim=1)


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_codebooks(n):
    one = request(2, 12, temperature=0)
    engine = Engine(tiny_weights(), num_codebooks=n)
    engine.run(engine.submit(one))
    assert torch.equal(one.codes(), first_codebooks(tiny_model(), one.tokens, one.mask, len(one.frames), n))
    with pytest.raises(ValueError, match=r"num_codebooks=9 must lie in 1\.\.5"):
        Engine(tiny_weights(), num_codebooks=9)


@pytest.mark.parametrize("share", [True, False])
def test_sharing_leaves_the_model_as_it_was(share):
    model, untouched = tiny_model().eval(), tiny_model().eval()
    weights = DecodingWeights(model, share)
    for (name, mine), other in zip(model.named_parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, other), name
    fused = weights.backbone.blocks[0].qkv
    assert (model.backbone.layers[0].attn.q_proj.weight.data_ptr() == fused.data_ptr()) == share


def test_keys_and_values_of_an_earlier_request_are_used_again():
    engine = Engine(tiny_weights(), slots=2)
    first = request(7, 9)
    first.keep = True
    engine.run(engine.submit(first))
    codes = first.codes()
    text = [3, 1, 4, 1, 5]
    start = [int(token) for token in first.tokens[:, K]]
    frames = conversation_frames([TurnTokens(start, codes), TurnTokens(text, None)], K)
    assert first.kept.length == len(first.tokens) + codes.shape[1] - (first.finished == "length")

    def later(prefix):
        return Request(frames.tokens, frames.mask, 8, Sampling(0.9, 5, 3), prefix=prefix)

    fresh, resumed = later(None), later(first.kept)
    engine.run(engine.submit(fresh), engine.submit(resumed))
    assert fresh.frames == resumed.frames


@pytest.mark.parametrize(
    ("tokens", "mask", "reason"),
    [
        (torch.full((3, K + 1), CODEBOOK_SIZE + 3), torch.ones(3, K + 1, dtype=torch.bool), "ids out of range"),
        (torch.full((3, K + 1), -1), torch.ones(3, K + 1, dtype=torch.bool), "ids out of range"),
        (torch.zeros(3, K, dtype=torch.int64), torch.ones(3, K, dtype=torch.bool), r"must be tokens and mask \[S, 6\]"),
        (torch.zeros(0, K + 1, dtype=torch.int64), torch.ones(0, K + 1, dtype=torch.bool), "with S > 0"),
        (torch.zeros(150, K + 1, dtype=torch.int64), torch.ones(150, K + 1, dtype=torch.bool), "is too long"),
    ],
)
def test_bad_requests_are_refused_and_their_neighbours_go_on(tokens, mask, reason):
    engine = Engine(tiny_weights(), slots=2)
    neighbour = engine.submit(request(4))
    engine.advance()
    with pytest.raises(ValueError, match=reason):
        engine.submit(Request(tokens, mask, 10, Sampling()))
    engine.run(neighbour)
    assert neighbour.frames == alone(4, 10, 0, 0.9, 5)


def test_runaway_turns_are_ended():
    def ended(frames: list[list[int]], **guards: float | None):
        watch = RunawayWatch(Guards(**guards), frame_rate=2, silent=frozenset({0, 7}))
        reasons = [watch.see(frame) for frame in frames]
        return next(((number, reason) for number, reason in enumerate(reasons) if reason), None)

    varied = [[number, 1] for number in range(1, 7)]
    assert ended(varied) is None
    assert ended([[3, 3]] * 9, repetition_seconds=2) == (3, "repetition")
    assert ended([[3, 3], [3, 4]] * 9, repetition_seconds=2) is None
    assert ended([*varied, *([[7, 1], [0, 2]] * 9)], silence_seconds=3) == (11, "silence")
    assert ended([[7, 1]] * 99, repetition_seconds=None, silence_seconds=None) is None
