"""How fast the model speaks: one turn at a time and as many as there are slots, the first audio, single frames."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from csm.config import EvalConfig
from csm.evaluation.prompts import EvalPrompt, PromptSet, fit_context
from csm.evaluation.suites import turns
from csm.evaluation.suites.suite import Suite
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.guards import Guards

WARM_UPS = 3


def timings(generator: Generator, prompts: PromptSet, settings: EvalConfig) -> dict[str, Any]:
    """Plain values. Codes reach the host with every frame, so wall time is compute time; the codec's decoding is part
    of everything but the single frames. Nothing else may use the machine meanwhile."""
    requests = [_request(prompt, generator, settings) for prompt in prompts.prompts]
    for request in requests[:WARM_UPS]:
        generator.generate_batch([request])
    one = _throughput(generator, [[request] for request in requests])
    slots = len(generator.engine.slots)
    many = _throughput(generator, [requests[i : i + slots] for i in range(0, len(requests), slots)])
    first = [_first_audio(generator, request) for request in requests]
    frames = [seconds for request in requests for seconds in _frame_seconds(generator, request)]
    return {
        "one_turn_at_a_time": one,
        f"{slots}_turns_at_a_time": many,
        "first_audio_ms": _percentiles(first),
        "frame_ms": _percentiles(frames),
        "frame_budget_ms": round(1000 / generator.codec.frame_rate, 1),
    }


def _request(prompt: EvalPrompt, generator: Generator, settings: EvalConfig) -> SpeechRequest:
    milliseconds = 1000 * settings.max_audio_seconds
    context = fit_context(prompt, generator, generator.max_frames(milliseconds))
    return SpeechRequest(
        prompt.text, prompt.speaker, context, milliseconds, settings.temperature, settings.topk, 0, Guards.off()
    )


def _throughput(generator: Generator, batches: list[list[SpeechRequest]]) -> dict[str, float | None]:
    """Compute seconds per second of audio (RTF, lower is better), and its inverse."""
    started, audio = time.perf_counter(), 0.0
    for batch in batches:
        audio += sum(len(turn.audio) for turn in generator.generate_batch(batch)) / generator.sample_rate
    seconds = time.perf_counter() - started
    if not audio:
        return {"rtf": None, "times_real_time": None}
    return {"rtf": round(seconds / audio, 4), "times_real_time": round(audio / seconds, 3)}


def _first_audio(generator: Generator, request: SpeechRequest) -> float:
    """Seconds from the request to its first samples: prefill, one frame, its decoding."""
    started = time.perf_counter()
    stream = generator.stream(
        request.text,
        request.speaker,
        request.context,
        request.max_audio_length_ms,
        request.temperature,
        request.topk,
        request.seed,
        request.guards,
    )
    next(iter(stream), None)
    seconds = time.perf_counter() - started
    for _ in stream:  # to its end, which frees the slot
        pass
    return seconds


def _frame_seconds(generator: Generator, request: SpeechRequest) -> list[float]:
    """Seconds of every frame after the first, of one turn."""
    submitted = generator.engine.submit(generator.request(request))
    seconds = []
    while not submitted.finished:
        started = time.perf_counter()
        before = len(submitted.frames)
        generator.engine.advance()
        if len(submitted.frames) > max(1, before):
            seconds.append(time.perf_counter() - started)
    return seconds


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "p95": None}
    half, most = np.percentile(1000 * np.asarray(seconds), [50, 95])
    return {"p50": round(float(half), 2), "p95": round(float(most), 2)}


SUITE = Suite(
    name="speed",
    version=1,
    scoring="compute seconds over audio seconds (RTF, lower is better), with the codec; see timings",
    metrics=("failed", "speed"),
    load=turns.load,
    timings=timings,
)
