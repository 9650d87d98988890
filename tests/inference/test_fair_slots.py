"""Order of service: whoever has a slot is spoken to in bounded time, however many others come and go."""

from __future__ import annotations

import pytest

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
