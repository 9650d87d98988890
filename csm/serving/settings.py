"""Settings of a server: whom it serves, what it refuses, where it keeps things."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from csm.inference.voice import Voice


@dataclass(frozen=True)
class Limits:
    """Bounds of what one client can ask for. Sizes in bytes, times in seconds.

    queue:         responses that wait for a slot
    connections:   requests and WebSockets at the same time, others included
    body, upload:  of a request, of an audio file in it
    text:          characters of `input`
    audio:         of a response
    reference:     of a recording that is given, as voice or as context
    context_turns: given with a request
    batch:         items of a batch
    voices, conversations, turns: kept, and turns of one conversation
    loaded:        conversations whose keys and values stay in memory
    idle:          until those of a WebSocket without session_id leave the memory after an answer
    session_wait:  for the turn that is being spoken in the same conversation
    session_queue: requests that wait so
    drain:         for responses that are being spoken when the server is told to stop
    send:          for a client that reads nothing
    text_wait:     for the next piece of text of an answer on a WebSocket, which holds a place for a response meanwhile
    """

    queue: int = 32
    connections: int = 256
    body: int = 32 << 20
    upload: int = 10 << 20
    text: int = 4096
    audio: float = 600.0
    reference: float = 60.0
    context_turns: int = 32
    batch: int = 32
    voices: int = 256
    conversations: int = 1024
    turns: int = 1024
    loaded: int = 64
    idle: float = 60.0
    session_wait: float = 30.0
    session_queue: int = 8
    drain: float = 60.0
    send: float = 30.0
    text_wait: float = 60.0


@dataclass(frozen=True)
class Settings:
    """
    names:           of the model, in requests and in /v1/models; the first is its own
    data:            folder of voices and conversations
    api_key:         that every request but /health and /ready must bear; None: none
    allowed_origins: web pages of other hosts that browsers may call from
    local_only:      whether requests must be addressed to this machine, as protects a server on the loopback interface
                     from web pages whose name is made to point to it
    voices:          names for speakers of the model, beside speaker_0, speaker_1, ..., and for voices made of turns
    """

    names: tuple[str, ...]
    data: Path
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
    local_only: bool = False
    voices: dict[str, int | Voice] = field(default_factory=dict)
    limits: Limits = Limits()
