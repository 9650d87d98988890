"""Speech from text and the conversation before it, with Sesame's Python API.

segments + text --tokenizer, codec--> frames --engine, frame by frame--> codes [K, T] --codec--> audio [num_samples]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from csm.codec import Codec
from csm.frames import TurnTokens
from csm.inference.engine import Engine, Request
from csm.inference.guards import GUARDS, Guards, RunawayWatch, silent_codes, text_seconds
from csm.inference.modes import Mode
from csm.inference.sampling import Sampling
from csm.inference.segments import GeneratedSegment, PromptBuilder, Segment
from csm.inference.streams import AudioStreams, ChunkRamp, SpeechStream
from csm.inference.weights import DecodingWeights
from csm.model.csm import CSM
from csm.text import TextTokenizer
from csm.watermark.base import UNMARKED, Watermark


@dataclass(frozen=True)
class SpeechRequest:
    """A turn to be spoken. The fields are the arguments of `Generator.generate_segment`."""

    text: str
    speaker: int
    context: Sequence[Segment] = ()
    max_audio_length_ms: float = 90_000
    temperature: float = 0.9
    topk: int = 50
    seed: int | None = None
    guards: Guards = GUARDS
    guidance: float = 1.0


class Generator:
    """A model, its codec and its tokenizer, ready to speak.

    The model is used as it is (dtype, device) and put into eval mode.
    slots:         turns of `generate_batch` spoken at the same time
    num_codebooks: codebooks generated per frame, at most the model's; None: all. Fewer are faster and sound coarser
    mode:          how a frame step runs, see csm/inference/modes.py
    share_weights: lets the model's q, k, v, gate and up matrices become views of fused ones, which saves their memory;
                   not for a model that is being trained
    watermark:     marks the audio of `generate` and `stream`, which goes to listeners. Turns with codes, of
                   `generate_segment`, `generate_batch` and conversations, become context and are never marked
    """

    def __init__(
        self,
        model: CSM,
        codec: Codec,
        tokenizer: TextTokenizer,
        slots: int = 8,
        num_codebooks: int | None = None,
        mode: Mode = "eager",
        share_weights: bool = False,
        watermark: Watermark = UNMARKED,
    ) -> None:
        if codec.num_codebooks != model.config.num_codebooks or codec.codebook_size != model.config.codebook_size:
            raise ValueError(
                f"the codec {codec.name} has {codec.num_codebooks} codebooks of {codec.codebook_size}, the model reads "
                f"{model.config.num_codebooks} of {model.config.codebook_size}: use the codec it was trained with"
            )
        self.model = model.eval()
        self.codec = codec
        self.tokenizer = tokenizer
        self.watermark = watermark
        self.prompts = PromptBuilder(codec, tokenizer, model.config)
        self.engine = Engine(DecodingWeights(self.model, share_weights), slots, num_codebooks, mode)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio taken and returned, in Hz."""
        return self.codec.sample_rate

    def generate(
        self,
        text: str,
        speaker: int,
        context: Sequence[Segment],
        max_audio_length_ms: float = 90_000,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
    ) -> Tensor:
        """Speaks `text` as `speaker` after `context`; returns float32 `[num_samples]` on the CPU, with the watermark.

        Raises ValueError if the context leaves no room for `max_audio_length_ms` of audio, for a context segment that
        cannot be read, for an empty text, and for options out of range (`Sampling`, `max_frames`).
        """
        turn = self.generate_segment(text, speaker, context, max_audio_length_ms, temperature, topk, seed)
        return self.watermark.embed(turn.audio, self.sample_rate)

    def generate_segment(
        self,
        text: str,
        speaker: int,
        context: Sequence[Segment],
        max_audio_length_ms: float = 90_000,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
        guards: Guards = GUARDS,
        guidance: float = 1.0,
    ) -> GeneratedSegment:
        """Like `generate`, but returns the turn with its codes, ready to be used as context, and why it ended.

        guards:   what ends a turn that the model does not end
        guidance: scale of classifier-free guidance towards the text, for a model that was trained with
                  `data.text_dropout`; 1: none. Other scales compute every frame twice, in two slots
        """
        turn = SpeechRequest(text, speaker, context, max_audio_length_ms, temperature, topk, seed, guards, guidance)
        request = self.request(turn)
        self.engine.run(self.engine.submit(request))
        return self.result(turn, request)

    def generate_batch(self, turns: Sequence[SpeechRequest]) -> list[GeneratedSegment]:
        """Speaks independent turns, several at a time; each is what `generate_segment` gives for it.

        Raises what that raises, with the number of the turn, before anything is spoken.
        """
        requests = []
        for number, turn in enumerate(turns):
            try:
                request = self.request(turn)
                self.engine.check(request)
            except ValueError as error:
                raise ValueError(f"turn {number}: {error}") from error
            requests.append(request)
        for request in requests:
            self.engine.submit(request)
        self.engine.run(*requests)
        return [self.result(turn, request) for turn, request in zip(turns, requests, strict=True)]

    def stream(
        self,
        text: str,
        speaker: int,
        context: Sequence[Segment] = (),
        max_audio_length_ms: float = 90_000,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
        guards: Guards = GUARDS,
        first_chunk_frames: int = 1,
        chunk_frames: int = 8,
        guidance: float = 1.0,
    ) -> SpeechStream:
        """The audio of `generate` in chunks while it is spoken: an iterator of float32 `[num_samples]` on the CPU.

        first_chunk_frames, chunk_frames: frames of the first chunk and of the largest; they double in between
        Raises what `generate` raises, before anything is spoken.
        """
        turn = SpeechRequest(text, speaker, context, max_audio_length_ms, temperature, topk, seed, guards, guidance)
        ramp, request = ChunkRamp(first_chunk_frames, chunk_frames), self.request(turn)
        self.engine.check(request)
        return SpeechStream(self.streams, request, ramp, mark=self.watermark.stream(self.sample_rate))

    def generate_codes(
        self,
        tokens: Tensor,
        mask: Tensor,
        max_frames: int,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
    ) -> Tensor:
        """Continues the prompt `tokens, mask [S, K+1]` with up to `max_frames` frames, without guards.

        Returns int64 codes `[K, T]` on the CPU, without the end-of-speech frame: T < max_frames if the model ended
        the turn (0 if it did so at once).
        `temperature=0` is greedy, `topk=0` draws from all codes; `seed` makes sampling reproducible whatever else draws
        random numbers. Raises ValueError if prompt and `max_frames` do not fit into the model's positions (Sesame's
        rule), or an option is out of range.
        """
        request = Request(tokens, mask, max_frames, Sampling(temperature, topk, seed))
        self.engine.run(self.engine.submit(request))
        return self.codes(request)

    def max_frames(self, max_audio_length_ms: float) -> int:
        """Whole frames in a length of audio. Raises ValueError if there is not even one, or no end to them."""
        frame_ms = 1000 / self.codec.frame_rate
        if not frame_ms <= max_audio_length_ms < math.inf:
            raise ValueError(
                f"max_audio_length_ms={max_audio_length_ms}: must be a finite number of at least one frame, "
                f"{frame_ms:g} ms"
            )
        # A product of seconds, such as 1000 * 4.56, may fall short of a whole number of frames by rounding.
        return int(max_audio_length_ms * self.codec.frame_rate / 1000 + 1e-6)

    def segment_frames(self, segment: Segment) -> int:
        """Frames that a segment's audio takes in the context. Raises ValueError if it has neither audio nor codes."""
        if segment.codes is not None:
            return segment.codes.shape[1]
        if segment.audio is None:
            raise ValueError(f"segment {segment.text!r} has neither audio nor codes; give it one of them")
        return -(-len(segment.audio) // self.codec.samples_per_frame)

    def segment_positions(self, segment: Segment) -> int:
        """Positions that a segment takes in the context. Raises ValueError as `segment_frames` does."""
        tokens = self.tokenizer.encode_turn(segment.text, segment.speaker)
        return len(tokens) + self.segment_frames(segment) + 1  # its end has a position

    def request(self, turn: SpeechRequest, turns: list[TurnTokens] | None = None) -> Request:
        """A turn as the engine takes it; turns: its prompt, if not that of its context.

        Raises what `generate_segment` raises, but for lack of room.
        """
        sampling = Sampling(turn.temperature, turn.topk, turn.seed, turn.guidance)
        room = self.max_frames(turn.max_audio_length_ms)
        turns = turns or self.prompts.turns(turn.context, turn.text, turn.speaker)
        frames, without_text = self.prompts.layout(turns), None
        if sampling.guided:
            base = self.prompts.without_text(turns, turn.speaker)
            without_text = base.tokens, base.mask
        max_frames = min(room, self._text_frames(turn.text)) if turn.guards.text_bound else room
        watch = self._watch(turn.guards)
        return Request(frames.tokens, frames.mask, max_frames, sampling, room, watch, without_text=without_text)

    def _text_frames(self, text: str) -> int:
        return round(text_seconds(text) * self.codec.frame_rate)

    def _watch(self, guards: Guards) -> RunawayWatch:
        silent: frozenset[int] = frozenset() if guards.silence_seconds is None else self._silent_codes
        return RunawayWatch(guards, self.codec.frame_rate, silent)

    def result(self, turn: SpeechRequest, request: Request) -> GeneratedSegment:
        """The turn that a finished request has become."""
        codes, audio = self.codes(request), torch.zeros(0)
        assert request.finished is not None, "results are asked for when a request is finished"
        if codes.shape[1]:
            audio = self.codec.decode(codes[None])[0, 0].float().cpu()
        return GeneratedSegment(turn.speaker, turn.text, audio, codes, request.finished)

    def codes(self, request: Request) -> Tensor:
        """int64 `[K, T]` of a request; T is 0 where nothing was said."""
        return request.codes() if request.frames else torch.zeros(self.engine.num_codebooks, 0, dtype=torch.int64)

    @cached_property
    def streams(self) -> AudioStreams:
        return AudioStreams(self.codec, self.engine)

    @cached_property
    def _silent_codes(self) -> frozenset[int]:
        return silent_codes(self.codec)
