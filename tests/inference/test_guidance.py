"""Classifier-free guidance: every codebook is drawn from the logits of two prompts, whatever else is being spoken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csm.inference.engine import Engine, Request
from csm.inference.sampling import Sampling, SlotGuidance
from csm.inference.weights import DecodingWeights
from csm.model.csm import CSM
from tests.inference.test_engine import alone, prompt, request, tiny_weights
from tests.tiny import CODEBOOK_SIZE, K, tiny_model


def guided(seed: int, scale: float = 1.7, max_frames: int = 10, **options: float) -> Request:
    options = {"temperature": 0.9, "topk": 5, "seed": seed} | options
    tokens, mask = prompt(seed, 6, 5)
    sampling = Sampling(**options, guidance=scale)
    return Request(tokens, mask, max_frames, sampling, without_text=prompt(seed, 2, 5))


@torch.no_grad()
def guided_frames(model: CSM, one: Request, scale: float, steps: int) -> Tensor:
    """Greedy guided generation from the training forward, in float32, `[K, T]`."""
    assert one.without_text is not None
    prompts, frames = [(one.tokens, one.mask), one.without_text], []
    present = torch.tensor([[True] * K + [False]])
    for _ in range(steps):
        states = [
            model.backbone_states(tokens[None], mask[None], torch.arange(len(tokens))[None])[:, -1]
            for tokens, mask in prompts
        ]
        frame = torch.zeros(1, K + 1, dtype=torch.int64)
        for codebook in range(K):
            with_text, without = (
                model.codebook0_head(state)[0]
                if codebook == 0
                else model.decoder_logits(state, frame[:, :-2])[codebook - 1, 0]
                for state in states
            )
            mixed = without + scale * (with_text - without)
            frame[0, codebook] = mixed[:CODEBOOK_SIZE].argmax()
        frames.append(frame[0, :K])
        prompts = [(torch.cat((tokens, frame)), torch.cat((mask, present))) for tokens, mask in prompts]
    return torch.stack(frames, dim=1)


@pytest.mark.parametrize("scale", [1.3, 2.5])
def test_all_codebooks_follow_both_prompts(scale: float) -> None:
    differs = 0
    for seed in range(4):
        one = guided(seed, scale, temperature=0)
        engine = Engine(tiny_weights(), slots=2)
        engine.run(engine.submit(one))
        assert torch.equal(one.codes(), guided_frames(tiny_model().eval(), one, scale, len(one.frames)))
        plain = Request(one.tokens, one.mask, 10, Sampling(0, 5, seed))
        engine.run(engine.submit(plain))
        differs += plain.frames != one.frames
    assert differs >= 3


def test_without_effect_where_the_text_says_nothing() -> None:
    """Two equal prompts: whatever the scale, guided logits are the prompt's own, but for rounding."""
    tokens, mask = prompt(3, 6, 5)
    one = Request(tokens, mask, 10, Sampling(0, 5, 3, guidance=3.0), without_text=(tokens, mask))
    plain = Request(tokens, mask, 10, Sampling(0, 5, 3))
    engine = Engine(tiny_weights(), slots=3)
    engine.run(engine.submit(one), engine.submit(plain))
    assert one.frames == plain.frames


def test_neighbors_change_nothing_and_are_not_changed() -> None:
    lone = guided(2)
    engine = Engine(tiny_weights(), slots=2)
    engine.run(engine.submit(lone))

    engine = Engine(tiny_weights(), slots=4)
    first = engine.submit(request(1, 14))
    engine.advance()
    one, second, third = engine.submit(guided(2)), engine.submit(request(5, 8)), engine.submit(guided(2))
    for _ in range(3):
        engine.advance()
    engine.hold(one)
    engine.advance()
    assert len(engine.slots) == 4 and third in engine.waiting  # two free slots at once are what it waits for
    engine.resume(one)
    engine.run(first, one, second, third)
    assert one.frames == third.frames == lone.frames
    assert first.frames == alone(1, 14, 0, 0.9, 5) and second.frames == alone(5, 8, 0, 0.9, 5)
    state, numbers = engine.step.state, torch.arange(4)
    assert engine.slots == [None] * 4 and not state.active.any() and not state.noise.any()
    assert torch.equal(state.with_text, numbers) and torch.equal(state.without_text, numbers)
    assert (state.scale == 1).all()


def test_cancelling_frees_both_slots() -> None:
    engine = Engine(tiny_weights(), slots=2)
    one = engine.submit(guided(4))
    engine.advance()
    engine.cancel(one)
    assert engine.slots == [None, None] and one.finished == "cancelled"


def test_one_slot_is_too_few() -> None:
    with pytest.raises(ValueError, match="guidance needs two slots"):
        Engine(tiny_weights()).submit(guided(1))
    with pytest.raises(ValueError, match=r"guidance=0\.5: must be a finite number from 1"):
        Sampling(guidance=0.5)


def test_slots_alone_keep_their_logits_bit_for_bit() -> None:
    logits = torch.randn(3, 7)
    pair = SlotGuidance(torch.tensor([0, 1, 0]), torch.tensor([2, 1, 2]), torch.tensor([[2.0], [1.0], [2.0]]))
    mixed = pair.apply(logits)
    assert torch.equal(mixed[1], logits[1]) and torch.equal(mixed[0], mixed[2])
    torch.testing.assert_close(mixed[0], logits[2] + 2 * (logits[0] - logits[2]))


@pytest.mark.slow
def test_compiled_steps_say_the_same() -> None:
    eager, compiled = guided(2, temperature=0), guided(2, temperature=0)
    for one, mode in ((eager, "eager"), (compiled, "compiled")):
        engine = Engine(DecodingWeights(tiny_model().eval(), share=False), slots=2, mode=mode)
        engine.run(engine.submit(one))
    assert eager.frames == compiled.frames
