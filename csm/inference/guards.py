"""Ends of a turn other than the model's own: its limits, and guards against speech that has run away.

A model that misses its end-of-speech frame goes on until the limit, most often repeating a frame or silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from csm.codec import Codec

FinishReason = Literal["stop", "length", "repetition", "silence", "cancelled"]
"""stop: the model ended the turn; length: it reached a limit; repetition, silence: a guard ended it."""

SECONDS_BEFORE_TEXT, SECONDS_PER_BYTE, SECONDS_PER_DIGIT = 4.0, 0.2, 0.6


@dataclass(frozen=True)
class Guards:
    """When a turn is ended that the model does not end.

    text_bound:         bounds the audio by the text, see `text_seconds`
    repetition_seconds: ends a turn after so much of the same frame again and again; None: never
    silence_seconds:    ends a turn after so much silence; None: never
    """

    text_bound: bool = True
    repetition_seconds: float | None = 2.0
    silence_seconds: float | None = 4.0

    @classmethod
    def off(cls) -> Guards:
        """Only the model and `max_audio_length_ms` end a turn."""
        return cls(False, None, None)


GUARDS = Guards()


def text_seconds(text: str) -> float:
    """Longest audio expected of a text: about three times what slow reading takes.

    In bytes of UTF-8, since scripts with more bytes a character have more sound in it; digits are read as words.
    """
    digits = sum(character.isdigit() for character in text)
    return SECONDS_BEFORE_TEXT + SECONDS_PER_BYTE * len(text.encode()) + SECONDS_PER_DIGIT * digits


def silent_codes(codec: Codec) -> frozenset[int]:
    """Codes of codebook 0, the coarsest, that the codec gives for silence and for noise 60 dB under full scale."""
    samples = 2 * codec.sample_rate
    noise = 1e-3 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    audio = torch.stack((torch.zeros(samples), noise))[:, None].to(codec.device)
    return frozenset(codec.encode(audio)[:, 0].flatten().tolist())


class RunawayWatch:
    """Watches the frames of one turn for runs of the same and of silence."""

    def __init__(self, guards: Guards, frame_rate: float, silent: frozenset[int]) -> None:
        self.longest_same = _frames(guards.repetition_seconds, frame_rate)
        self.longest_silence = _frames(guards.silence_seconds, frame_rate)
        self.silent = silent
        self.same = self.silence = 0
        self.last: list[int] | None = None

    def see(self, frame: list[int]) -> FinishReason | None:
        """The reason to end the turn with `frame`, its codes, if there is one."""
        self.same = self.same + 1 if frame == self.last else 1
        self.silence = self.silence + 1 if frame[0] in self.silent else 0
        self.last = frame
        if self.same >= self.longest_same:
            return "repetition"
        return "silence" if self.silence >= self.longest_silence else None


def _frames(seconds: float | None, frame_rate: float) -> float:
    return math.inf if seconds is None else max(2, round(seconds * frame_rate))
