"""A conversation that goes on: what was said and heard stays in the key/value cache, as it is, for the next turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from csm.frames import TurnTokens
from csm.inference.cache import Prefix
from csm.inference.engine import Request
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.segments import GeneratedSegment, Segment
from csm.inference.streams import ChunkRamp, SpeechStream

KEPT_SHARE = 0.6
"""Share of the room that is filled after turns were dropped: what is left is prefilled anew, so not at every turn."""


@dataclass(eq=False)
class Turn:
    """A turn of the conversation. pinned: is never dropped."""

    tokens: TurnTokens
    pinned: bool

    @property
    def positions(self) -> int:
        return self.tokens.num_positions


class Conversation:
    """Turns of several speakers, in the order in which they are said and heard.

    voices:   segments that come first and stay, such as a recording of each voice
    overflow: what happens when the next turn has no room: "drop_oldest" drops whole turns, the oldest ones first, until
              well below the model's positions; "error" raises ValueError
    options:  fields of `SpeechRequest` for every turn, such as temperature and max_audio_length_ms

    One turn is spoken at a time. The context is the same as that of `generate_segment` with all turns that are left as
    segments. Codes that were generated are neither decoded nor encoded again.
    """

    def __init__(
        self,
        generator: Generator,
        voices: Sequence[Segment] = (),
        overflow: Literal["drop_oldest", "error"] = "drop_oldest",
        **options: Any,
    ) -> None:
        self.generator, self.overflow = generator, overflow
        self.options = SpeechRequest("", 0, **{"max_audio_length_ms": 30_000, **options})
        self.turns = [Turn(generator.prompts.context_turn(n, voice), pinned=True) for n, voice in enumerate(voices)]
        self._cached: Prefix | None = None  # of the turns, as far as they were read

    def hear(self, segment: Segment) -> None:
        """Adds a turn that somebody else said. Raises ValueError if the segment cannot be read."""
        self.turns.append(Turn(self.generator.prompts.context_turn(len(self.turns), segment), pinned=False))

    def say(self, text: str, speaker: int, **options: Any) -> GeneratedSegment:
        """Speaks a turn, which becomes part of the conversation; options as for the conversation, such as a seed.

        Raises what `Generator.generate_segment` raises; the conversation is then as it was, but for dropped turns.
        """
        speech, request, ended = self.begin(text, speaker, options)
        try:
            self.generator.engine.run(self.generator.engine.submit(request))
        finally:
            ended(request)
        return self.generator.result(speech, request)

    def stream(
        self, text: str, speaker: int, first_chunk_frames: int = 1, chunk_frames: int = 8, **options: Any
    ) -> SpeechStream:
        """Like `say`, in chunks. Where the stream is closed early, the turn stays as far as it was spoken."""
        ramp = ChunkRamp(first_chunk_frames, chunk_frames)
        _, request, ended = self.begin(text, speaker, options)
        mark = self.generator.watermark.stream(self.generator.sample_rate)
        return SpeechStream(self.generator.streams, request, ramp, ended, mark)

    def begin(
        self, text: str, speaker: int, options: dict[str, Any]
    ) -> tuple[SpeechRequest, Request, Callable[[Request], None]]:
        """A new turn for whoever advances the engine: its request, and what is to be called when that has ended.

        Raises what `say` raises, but for a prompt that is too long, which `Engine.submit` refuses.
        """
        speech = replace(self.options, text=text, speaker=speaker, **options)
        turn = self.generator.prompts.text_turn(text, speaker)
        self._make_room(turn.num_positions + self.generator.max_frames(speech.max_audio_length_ms) + 1)
        request = self.generator.request(speech, [*(turn.tokens for turn in self.turns), turn])
        request.prefix, request.keep = self._cached, True
        return speech, request, partial(self._add, turn, after=len(self.turns))

    def release(self) -> None:
        """Gives back the memory of keys and values: the next turn computes them anew."""
        self._cached = None

    def cut(self, turn: Turn, frames: int) -> None:
        """Forgets all that was said after the first `frames` frames of `turn`, which a listener who broke in has not
        heard; without any, the whole turn."""
        number = self.turns.index(turn)
        positions = sum(earlier.positions for earlier in self.turns[:number])
        self.turns = self.turns[:number]
        if frames:
            assert turn.tokens.codes is not None, "turns of a conversation have codes"
            self.turns.append(Turn(TurnTokens(turn.tokens.text, turn.tokens.codes[:, :frames]), turn.pinned))
            positions += len(turn.tokens.text) + min(frames, turn.tokens.codes.shape[1])
        if self._cached is not None:
            self._cached = self._cached.first(positions)

    def _add(self, turn: TurnTokens, request: Request, after: int) -> None:
        """Puts a turn that has ended, as far as it was spoken, where it began: others may have been heard since."""
        if request.frames or request.finished == "stop":
            codes = self.generator.codes(request)
            self.turns.insert(after, Turn(TurnTokens(turn.text, codes), pinned=False))
            self._cached = request.kept

    def _make_room(self, needed: int) -> None:
        """Drops turns until `needed` positions are free, or raises ValueError."""
        room = self.generator.model.config.max_seq_len - needed
        held = sum(turn.positions for turn in self.turns)
        if held <= room:
            return
        if self.overflow == "error":
            raise ValueError(
                f"the conversation holds {held} positions and the next turn needs {needed} of the model's "
                f"{room + needed}; begin a new one, or let it drop its oldest turns (overflow='drop_oldest')"
            )
        pinned = sum(turn.positions for turn in self.turns if turn.pinned)
        if pinned > room:
            raise ValueError(
                f"the voices take {pinned} positions and the next turn needs {needed} of the model's {room + needed}; "
                "give shorter voices, a shorter text or a smaller max_audio_length_ms"
            )
        kept, dropped_from = list(self.turns), None
        for turn in self.turns:
            if sum(turn.positions for turn in kept) <= KEPT_SHARE * room:
                break
            if not turn.pinned:
                dropped_from = dropped_from if dropped_from is not None else kept.index(turn)
                kept.remove(turn)
        assert dropped_from is not None, "held > room >= pinned: there are turns to drop"
        # Positions before the first dropped turn stay where they are; all after it move.
        if self._cached is not None:
            self._cached = self._cached.first(sum(turn.positions for turn in kept[:dropped_from]))
        self.turns = kept
