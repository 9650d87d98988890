"""Order of service: whoever has a slot is spoken to in bounded time, however many others come and go."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm.inference import engine as engine_module
from csm.inference.engine import Engine, Request
from csm.inference.sampling import Sampling
from tests.inference.test_engine import prompt, request, tiny_weights
from tests.inference.test_guidance import guided


def test_a_prompt_is_read_though_others_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots below it always hold a prompt that is being read; it came before all but the first of those."""
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    engine = Engine(tiny_weights(), slots=3)

    def short(seed: int) -> Request:
        return Request(*prompt(seed, 20), 1, Sampling(seed=seed))

    for seed in range(2):
        engine.submit(short(seed))
    last = engine.submit(short(2))
    for seed in range(3, 60):
        if not engine.waiting:
            engine.submit(short(seed))
        engine.advance()
        if last.finished:
            break
    assert last.finished and seed < 25  # rounds: 15 for three prompts of 19 positions


def test_who_waits_for_slots_that_are_not_free_is_known() -> None:
    engine = Engine(tiny_weights(), slots=2)
    first, second = engine.submit(request(1)), engine.submit(guided(2))
    assert not engine.blocked
    engine.advance()
    assert engine.blocked and second in engine.waiting  # one slot is free, it needs two
    engine.run(first)
    assert not engine.blocked
    engine.run(second)


KINDS = st.tuples(st.integers(1, 24), st.integers(1, 6), st.booleans())  # positions of the prompt, frames, guided


@settings(max_examples=8, deadline=None)
@given(st.lists(KINDS, min_size=6, max_size=14), st.integers(2, 4))
def test_nobody_waits_for_those_who_come_later(kinds: list[tuple[int, int, bool]], slots: int) -> None:
    """One request comes in every round. Each ends within the rounds that it and those before it would take one by one,
    since the oldest one goes on in every round."""
    chunk, engine_module.PREFILL_CHUNK = engine_module.PREFILL_CHUNK, 4
    try:
        engine, come, longest = Engine(tiny_weights(), slots), [], 0
        rounds = 0
        while len(come) < len(kinds) or not all(one.finished for one, _ in come):
            if rounds < len(kinds):
                length, frames, with_guidance = kinds[rounds]
                base = prompt(rounds, 2) if with_guidance else None
                options = Sampling(seed=rounds, guidance=1.5 if with_guidance else 1.0)
                one = engine.submit(Request(*prompt(rounds, length), frames, options, without_text=base))
                longest += math.ceil((length - 1) / 4) + frames + 2 * with_guidance
                come.append((one, rounds + longest))
            engine.advance()
            rounds += 1
            assert all(one.finished or rounds < latest for one, latest in come), (rounds, come)
    finally:
        engine_module.PREFILL_CHUNK = chunk
