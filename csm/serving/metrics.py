"""Prometheus metrics of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 4.0, 8.0, 16.0)
_FRAME_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 1.0)


class Metrics:
    """One registry for each server, so that a process may hold several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("csm_requests", "Answers, by status", ["status"], registry=registry)
        self.refusals = Counter("csm_refusals", "Refused requests, by code of the error", ["code"], registry=registry)
        self.slots = Gauge("csm_slots", "Turns that can be spoken at the same time", registry=registry)
        self.busy = Gauge("csm_slots_busy", "Slots that hold a turn", registry=registry)
        self.held = Gauge("csm_slots_held", "Turns held back, far ahead of their listeners", registry=registry)
        self.queue = Gauge("csm_queue", "Turns that wait for a slot", registry=registry)
        self.ttfa = Histogram(
            "csm_ttfa_seconds",
            "From a turn's submission to its first sound, for turns that no sound of the same response precedes",
            buckets=_SECONDS,
            registry=registry,
        )
        self.frame = Histogram(
            "csm_frame_seconds",
            "One frame of all slots, with the codec; a frame lasts 0.08 s",
            buckets=_FRAME_SECONDS,
            registry=registry,
        )
        self.chunks = Counter("csm_chunks", "Chunks of audio handed out", registry=registry)
        self.late = Counter(
            "csm_chunks_late",
            "Chunks that came when a listener who began with the first had run dry; viability is 1 - late / chunks",
            registry=registry,
        )
        self.audio = Counter("csm_audio_seconds", "Audio that was spoken", registry=registry)
        self.turns = Counter("csm_turns", "Turns, by the reason of their end", ["reason"], registry=registry)
        self.watermark = Gauge("csm_watermark", "1 for the mark that speech leaves with", ["name"], registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
