"""Turns of a conversation as users give and get them, and prompts made of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.audio import as_audio
from csm.codec import Codec
from csm.config import CSMConfig
from csm.frames import Frames, TurnTokens, conversation_frames
from csm.inference.guards import FinishReason
from csm.text import TextTokenizer

KEPT_ENCODINGS = 256
"""Recordings whose codes are remembered, the most recently used ones."""


@dataclass
class Segment:
    """One turn of a conversation.

    speaker:     from 0
    audio:       float [num_samples] in [-1, 1] at the codec's sample rate
    codes:       int64 [K, T]; fewer rows are the first codebooks, as generated with `num_codebooks`
    sample_rate: of `audio` in Hz, if it is to be checked
    One of audio and codes is enough; codes win, so that generated turns return to the context exactly as the model
    produced them.
    """

    speaker: int
    text: str
    audio: Tensor | None = None
    codes: Tensor | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class GeneratedSegment:
    """A generated turn.

    audio:         float32 [num_samples] at the codec's sample rate, on the CPU; [0] if the model said nothing
    codes:         int64 [K, T], on the CPU
    finish_reason: "stop" (the model ended the turn), "length" (it reached a limit), "repetition" or "silence" (a guard
                   ended it), "cancelled"
    """

    speaker: int
    text: str
    audio: Tensor
    codes: Tensor
    finish_reason: FinishReason

    @property
    def segment(self) -> Segment:
        """The turn as context for the next."""
        return Segment(self.speaker, self.text, self.audio, self.codes)

    @property
    def frames(self) -> int:
        return self.codes.shape[1]


class PromptBuilder:
    """Makes prompts of segments; audio is encoded once and remembered by its content."""

    def __init__(self, codec: Codec, tokenizer: TextTokenizer, config: CSMConfig) -> None:
        self.codec, self.tokenizer, self.config = codec, tokenizer, config
        self._encodings: OrderedDict[bytes, Tensor] = OrderedDict()

    def prompt(self, context: Sequence[Segment], text: str, speaker: int) -> Frames:
        """The conversation up to the first frame of `text`. Raises what `turns` raises."""
        return self.layout(self.turns(context, text, speaker))

    def turns(self, context: Sequence[Segment], text: str, speaker: int) -> list[TurnTokens]:
        """The turns of a prompt, the last of which is to be spoken.

        Raises ValueError for an empty text, and for a segment that cannot be read, with its number.
        """
        turns = [self.context_turn(number, segment) for number, segment in enumerate(context)]
        return [*turns, self.text_turn(text, speaker)]

    def without_text(self, turns: list[TurnTokens], speaker: int) -> Frames:
        """The prompt of `turns` without the text of the last one: as `data.text_dropout` makes it in training."""
        return self.layout([*turns[:-1], TurnTokens(self._tokens("", speaker), None)])

    def layout(self, turns: list[TurnTokens]) -> Frames:
        return conversation_frames(turns, self.config.num_codebooks, fewer_codebooks=True)

    def text_turn(self, text: str, speaker: int) -> TurnTokens:
        """A turn to be spoken."""
        if not text.strip():
            raise ValueError("the text is empty; give something to be said")
        return TurnTokens(self._tokens(text, speaker), None)

    def context_turn(self, number: int, segment: Segment) -> TurnTokens:
        try:
            return TurnTokens(self._tokens(segment.text, segment.speaker), self.codes(segment))
        except ValueError as error:
            raise ValueError(f"context segment {number} ({segment.text!r}): {error}") from error

    def codes(self, segment: Segment) -> Tensor:
        """The codes `[K, T]` of a segment; T is 0 where nothing is said."""
        books, size = self.config.num_codebooks, self.config.codebook_size
        if segment.codes is not None:
            codes = torch.as_tensor(segment.codes)
            if codes.ndim != 2 or not 1 <= codes.shape[0] <= books or codes.is_floating_point():
                raise ValueError(f"its codes must be integers [{books}, T], got {codes.dtype} {tuple(codes.shape)}")
            if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < size):
                raise ValueError(f"its codes must lie in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}")
            return codes.cpu()
        if segment.audio is None:
            raise ValueError("it has neither audio nor codes; give it one of them")
        rate = self.codec.sample_rate
        if segment.sample_rate not in (None, rate):
            raise ValueError(
                f"its audio is at {segment.sample_rate} Hz, the codec reads {rate} Hz; convert it with "
                "csm.audio.resample, or read the file with csm.audio.load_audio"
            )
        audio = as_audio(segment.audio)
        return self._encode(audio) if len(audio) else torch.zeros(books, 0, dtype=torch.int64)

    def _encode(self, audio: Tensor) -> Tensor:
        key = hashlib.sha256(audio.cpu().contiguous().numpy().data).digest()
        if key not in self._encodings:
            self._encodings[key] = self.codec.encode(audio[None, None].to(self.codec.device))[0].cpu()
        self._encodings.move_to_end(key)
        while len(self._encodings) > KEPT_ENCODINGS:
            self._encodings.popitem(last=False)
        return self._encodings[key]

    def _tokens(self, text: str, speaker: int) -> list[int]:
        if speaker < 0:
            raise ValueError(f"speaker={speaker}: speakers are numbered from 0")
        return self.tokenizer.encode_turn(text, speaker)
