"""The engine's thread: turns held for others say the same, and nobody is far ahead while another waits for sound."""

from __future__ import annotations

import asyncio

import pytest
import torch

from csm.inference.generator import SpeechRequest
from csm.serving import engine_thread
from csm.serving.engine_thread import EngineThread, Store
from csm.serving.metrics import Metrics
from tests.inference.toys import toy_generator

TURNS = [SpeechRequest(text, 0, max_audio_length_ms=1_600, seed=n) for n, text in enumerate(["one", "two", "three"])]


def test_held_requests_say_what_they_would_have_said():
    generator = toy_generator(slots=3)
    expected = [turn.codes for turn in generator.generate_batch(TURNS)]
    requests = [generator.request(turn) for turn in TURNS]
    for request in requests:
        generator.engine.submit(request)
    rounds = 0
    while not all(request.finished for request in requests):
        for number, request in enumerate(requests):
            change = generator.engine.hold if (rounds // 3 + number) % 3 else generator.engine.resume
            change(request)
        lengths = [len(request.frames) for request in requests]
        generator.engine.advance()
        grown = [len(request.frames) - before for request, before in zip(requests, lengths, strict=True)]
        assert sum(grown) <= 1 or rounds == 0  # a request is held once it is speaking
        rounds += 1
    for request, codes in zip(requests, expected, strict=True):
        assert torch.equal(request.codes(), codes)


def test_a_held_request_can_be_cancelled():
    generator = toy_generator(slots=1)
    request = generator.request(TURNS[0])
    generator.engine.submit(request)
    generator.engine.advance()
    generator.engine.hold(request)
    generator.engine.cancel(request)
    assert request.finished == "cancelled" and generator.engine.slots == [None]
    assert torch.equal(
        generator.generate_segment("two", 0, [], 1_600, seed=1).codes, generator.generate_batch(TURNS)[1].codes
    )


def test_turns_far_ahead_wait_for_a_first_sound(monkeypatch):
    """Two turns whose listeners have plenty stand still until a third has its first sound."""
    monkeypatch.setattr(engine_thread, "FAR_AHEAD", 0.16)
    monkeypatch.setattr(engine_thread.time, "perf_counter", lambda: 0.0)  # listeners play nothing meanwhile
    generator = toy_generator(slots=3)
    expected = [turn.audio for turn in generator.generate_batch(TURNS)]
    thread = EngineThread(generator, Metrics())
    requests = [generator.request(turn) for turn in TURNS]
    heard: list[list[torch.Tensor]] = [[], [], []]
    order: list[int] = []
    held_at: list[int] = []

    async def speak() -> None:
        def sound(number: int):
            return lambda chunk: (heard[number].append(chunk), order.append(number))

        turns = [thread.speak(requests[n], sound(n), lambda request: None, Store()) for n in range(2)]
        while min(len(parts) for parts in heard[:2]) < 4:  # in this thread: rounds are counted
            thread._take_commands()
            thread._balance(0.0)
            thread.streams.advance()
            thread._hand_out()
            await asyncio.sleep(0)
        turns.append(thread.speak(requests[2], sound(2), lambda request: None, Store()))
        lengths = [len(request.frames) for request in requests[:2]]
        while not heard[2]:
            thread._take_commands()
            thread._balance(0.0)
            thread.streams.advance()
            thread._hand_out()
            await asyncio.sleep(0)
        held_at.extend(len(request.frames) - length for request, length in zip(requests[:2], lengths, strict=True))
        thread.start()
        await asyncio.gather(*(turn.done for turn in turns))
        thread.stop()

    asyncio.run(asyncio.wait_for(speak(), 30))
    assert held_at == [0, 0]
    for parts, audio in zip(heard, expected, strict=True):
        assert torch.equal(torch.cat(parts), audio)


def test_an_engine_that_fails_ends_its_turns(monkeypatch):
    generator = toy_generator(slots=1)
    thread = EngineThread(generator, Metrics())

    async def speak() -> None:
        monkeypatch.setattr(generator.streams, "advance", lambda: 1 / 0)
        thread.start()
        for _ in range(2):
            turn = thread.speak(generator.request(TURNS[0]), lambda chunk: None, lambda request: None, Store())
            result = await asyncio.wait_for(asyncio.gather(turn.done, return_exceptions=True), 10)
            assert isinstance(result[0], engine_thread.EngineFailed)
        thread.stop()

    asyncio.run(speak())
    assert isinstance(thread.failure, ZeroDivisionError)


def test_a_turn_that_cannot_be_kept_is_an_error_of_its_listener():
    """Its listener would wait for ever."""
    generator = toy_generator(slots=2)
    thread = EngineThread(generator, Metrics())

    async def speak() -> None:
        thread.start()
        keep_failing = thread.speak(generator.request(TURNS[0]), lambda chunk: None, lambda request: 1 / 0, Store())
        other = thread.speak(generator.request(TURNS[1]), lambda chunk: None, lambda request: None, Store())
        ended = asyncio.gather(keep_failing.done, other.done, return_exceptions=True)
        failing, _ = await asyncio.wait_for(ended, 10)
        assert isinstance(failing, engine_thread.EngineFailed)
        thread.stop()

    asyncio.run(speak())
    assert isinstance(thread.failure, ZeroDivisionError)


def test_a_turn_that_cannot_begin_is_an_error_of_its_listener(monkeypatch):
    generator = toy_generator(slots=1)
    thread = EngineThread(generator, Metrics())
    monkeypatch.setattr(generator.streams, "listen", lambda request: 1 / 0)

    async def speak() -> None:
        thread.start()
        turn = thread.speak(generator.request(TURNS[0]), lambda chunk: None, lambda request: None, Store())
        with pytest.raises(engine_thread.EngineFailed):
            await asyncio.wait_for(turn.done, 10)
        thread.stop()

    asyncio.run(speak())


def advanced(thread: EngineThread, now: float) -> None:
    """A round of the thread, in this one."""
    thread._take_commands()
    thread._balance(now)
    thread.streams.advance()
    thread._hand_out()


def test_who_waits_for_two_slots_holds_nobody(monkeypatch):
    """A guided turn beside one that speaks far ahead of its listener, in two slots: the first one has to end."""
    monkeypatch.setattr(engine_thread, "FAR_AHEAD", 0.16)
    monkeypatch.setattr(engine_thread.time, "perf_counter", lambda: 0.0)  # listeners play nothing meanwhile
    generator = toy_generator(slots=2)
    thread = EngineThread(generator, Metrics())
    guided = SpeechRequest("two", 0, max_audio_length_ms=400, seed=1, guidance=1.5)

    async def speak() -> None:
        requests = [generator.request(turn) for turn in (TURNS[0], guided)]
        for request in requests:
            thread.speak(request, lambda chunk: None, lambda request: None, Store())
        rounds = 0
        while not all(request.finished for request in requests):
            advanced(thread, 0.0)
            rounds += 1
            assert rounds < 40

    asyncio.run(speak())


def test_gaps_between_the_turns_of_a_response_are_counted(monkeypatch):
    """The next turn's first chunk is late if the listener has played all before; it is not if there is some left."""
    now = 0.0
    monkeypatch.setattr(engine_thread.time, "perf_counter", lambda: now)
    generator = toy_generator(slots=1)
    metrics = Metrics()
    thread, store = EngineThread(generator, metrics), Store()

    async def speak(text: str) -> None:
        request = generator.request(SpeechRequest(text, 0, max_audio_length_ms=400, seed=1))
        thread.speak(request, lambda chunk: None, lambda request: None, store)
        while not request.finished:
            advanced(thread, now)

    def late_and_first() -> tuple[float, float]:
        return metrics.late._value.get(), metrics.ttfa._sum.get()

    asyncio.run(speak("one"))  # 5 frames of 80 ms, if the model does not end earlier
    spoken = store.seconds
    assert spoken > 0.1
    now = spoken - 0.05
    asyncio.run(speak("two"))
    assert late_and_first() == (0, 0)
    now = store.seconds - 0.01

    async def late() -> None:
        nonlocal now
        request = generator.request(SpeechRequest("three", 0, max_audio_length_ms=80, seed=1))
        thread.speak(request, lambda chunk: None, lambda request: None, store)
        now += 0.5  # it waited for a slot
        advanced(thread, now)

    asyncio.run(late())
    assert late_and_first() == (1, 0)
