"""Speech from text and the conversation before it, with Sesame's Python API.

segments + text --tokenizer, codec--> frames --CSM, step by step--> codes [K, T] --codec--> audio [num_samples]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from csm.audio import as_audio
from csm.codec import Codec
from csm.frames import TurnTokens, conversation_frames, is_eos_frame
from csm.inference.cache import KVCache
from csm.inference.sampling import Sampling, sample_code
from csm.model.csm import CSM
from csm.text import TextTokenizer


@dataclass
class Segment:
    """One turn of a conversation.

    speaker: from 0
    audio:   float [num_samples] in [-1, 1] at the codec's sample rate
    codes:   int64 [K, T]
    One of audio and codes is enough; codes win, so that generated turns return to the context exactly as the model
    produced them.
    """

    speaker: int
    text: str
    audio: Tensor | None = None
    codes: Tensor | None = None


@dataclass(frozen=True)
class GeneratedSegment:
    """A generated turn.

    audio:         float32 [num_samples] at the codec's sample rate, on the CPU; [0] if the model said nothing
    codes:         int64 [K, T], on the CPU
    finish_reason: "stop" (the model ended the turn) or "length" (it reached the limit)
    """

    speaker: int
    text: str
    audio: Tensor
    codes: Tensor
    finish_reason: Literal["stop", "length"]

    @property
    def segment(self) -> Segment:
        """The turn as context for the next."""
        return Segment(self.speaker, self.text, self.audio, self.codes)

    @property
    def frames(self) -> int:
        return self.codes.shape[1]


class Generator:
    """A model, its codec and its tokenizer, ready to speak.

    The model is used as it is (dtype, device) and put into eval mode.
    """

    def __init__(self, model: CSM, codec: Codec, tokenizer: TextTokenizer) -> None:
        if codec.num_codebooks != model.config.num_codebooks or codec.codebook_size != model.config.codebook_size:
            raise ValueError(
                f"the codec {codec.name} has {codec.num_codebooks} codebooks of {codec.codebook_size}, the model reads "
                f"{model.config.num_codebooks} of {model.config.codebook_size}: use the codec it was trained with"
            )
        self.model = model.eval()
        self.codec = codec
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self._dtype = model.codebook0_head.weight.dtype

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio taken and returned, in Hz."""
        return self.codec.sample_rate

    def generate(
        self,
        text: str,
        speaker: int,
        context: list[Segment],
        max_audio_length_ms: float = 90_000,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
    ) -> Tensor:
        """Speaks `text` as `speaker` after `context`; returns float32 `[num_samples]` on the CPU.

        Raises ValueError if the context leaves no room for `max_audio_length_ms` of audio, for a context segment that
        cannot be read, and for options out of range (`Sampling`, `max_frames`).
        """
        return self.generate_segment(text, speaker, context, max_audio_length_ms, temperature, topk, seed).audio

    def generate_segment(
        self,
        text: str,
        speaker: int,
        context: list[Segment],
        max_audio_length_ms: float = 90_000,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
    ) -> GeneratedSegment:
        """Like `generate`, but returns the turn with its codes, ready to be used as context, and why it ended."""
        sampling, max_frames = Sampling(temperature, topk, seed), self.max_frames(max_audio_length_ms)
        turns = [self._context_turn(number, turn) for number, turn in enumerate(context)]
        turns.append(TurnTokens(self._encode_turn(text, speaker), None))
        frames = conversation_frames(turns, self.model.config.num_codebooks)
        codes = self._generate(frames.tokens, frames.mask, max_frames, sampling)
        audio = torch.zeros(0)
        if codes.shape[1]:
            audio = self.codec.decode(codes[None])[0, 0].float().cpu()
        return GeneratedSegment(speaker, text, audio, codes, "stop" if codes.shape[1] < max_frames else "length")

    def generate_codes(
        self,
        tokens: Tensor,
        mask: Tensor,
        max_frames: int,
        temperature: float = 0.9,
        topk: int = 50,
        seed: int | None = None,
    ) -> Tensor:
        """Continues the prompt `tokens, mask [S, K+1]` with up to `max_frames` frames.

        Returns int64 codes `[K, T]` on the CPU, without the end-of-speech frame: T < max_frames if the model ended
        the turn (0 if it did so at once).
        `temperature=0` is greedy, `topk=0` draws from all codes; `seed` makes sampling reproducible whatever else draws
        random numbers. Raises ValueError if prompt and `max_frames` do not fit into the model's positions (Sesame's
        rule), or an option is out of range.
        """
        return self._generate(tokens, mask, max_frames, Sampling(temperature, topk, seed))

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

    def _generate(self, tokens: Tensor, mask: Tensor, max_frames: int, sampling: Sampling) -> Tensor:
        limit = self.model.config.max_seq_len - max_frames
        if tokens.shape[0] >= limit:
            raise ValueError(
                f"prompt of {tokens.shape[0]} positions is too long: it must stay below max_seq_len - max_frames = "
                f"{self.model.config.max_seq_len} - {max_frames} = {limit}; "
                "give less context or a smaller max_audio_length_ms"
            )
        frames = []
        for frame in self._frames(tokens, mask, max_frames, sampling):
            if is_eos_frame(frame):
                break
            frames.append(frame.cpu())
        if not frames:
            return torch.zeros(self.model.config.num_codebooks, 0, dtype=torch.int64)
        return torch.stack(frames, dim=1)

    @torch.inference_mode()
    def _frames(self, tokens: Tensor, mask: Tensor, max_frames: int, sampling: Sampling) -> Iterator[Tensor]:
        """Yields frames `[K]`, the end-of-speech frame included."""
        config, device, prompt = self.model.config, self.device, tokens.shape[0]
        noise = sampling.generator(device)
        cache = KVCache(config.backbone, 1, prompt + max_frames, self._dtype, device)
        depth_cache = KVCache(config.decoder, 1, config.num_codebooks, self._dtype, device)
        positions = torch.arange(prompt + max_frames, device=device)[None]
        frame_tokens = torch.zeros(1, 1, config.num_codebooks + 1, dtype=torch.int64, device=device)
        frame_mask = torch.ones_like(frame_tokens, dtype=torch.bool)
        frame_mask[..., -1] = False

        step_tokens, step_mask = tokens[None].to(device), mask[None].to(device)
        for _ in range(max_frames):
            start = cache.length
            end = start + step_tokens.shape[1]
            states = self.model.backbone_states(step_tokens, step_mask, positions[:, start:end], cache=cache)
            cache.advance(end - start)
            frame = self._sample_frame(states[:, -1], depth_cache, sampling, noise)  # [K]
            yield frame
            frame_tokens[0, 0, :-1] = frame
            step_tokens, step_mask = frame_tokens, frame_mask

    def _sample_frame(self, state: Tensor, cache: KVCache, sampling: Sampling, noise: torch.Generator | None) -> Tensor:
        """All K codes of one frame from the backbone state `[1, D]` before it."""
        model, size = self.model, self.model.config.codebook_size
        code = sample_code(model.codebook0_head(state), sampling, size, noise)  # [1]
        codes = [code]
        cache.reset()
        inputs = torch.stack((state, model.embed_codes(code[:, None])[:, 0]), dim=1)  # [1, 2, D]
        for codebook in range(1, model.config.num_codebooks):
            positions = torch.arange(cache.length, cache.length + inputs.shape[1], device=state.device)[None]
            hidden = model.decoder(model.projection(inputs), positions, cache=cache)  # [1, s, d]
            cache.advance(inputs.shape[1])
            logits = hidden[:, -1] @ model.audio_head[codebook - 1]  # [1, V]
            code = sample_code(logits, sampling, size, noise)
            codes.append(code)
            inputs = model.embed_codes(code[:, None], first_codebook=codebook)  # [1, 1, D]
        return torch.cat(codes)

    def _encode_turn(self, text: str, speaker: int) -> list[int]:
        if speaker < 0:
            raise ValueError(f"speaker={speaker}: speakers are numbered from 0")
        return self.tokenizer.encode_turn(text, speaker)

    def _context_turn(self, number: int, segment: Segment) -> TurnTokens:
        try:
            return TurnTokens(self._encode_turn(segment.text, segment.speaker), self._segment_codes(segment))
        except ValueError as error:
            raise ValueError(f"context segment {number} ({segment.text!r}): {error}") from error

    def _segment_codes(self, segment: Segment) -> Tensor:
        """The codes `[K, T]` of a context segment; T is 0 where nothing is said."""
        books, size = self.model.config.num_codebooks, self.model.config.codebook_size
        if segment.codes is not None:
            codes = torch.as_tensor(segment.codes)
            if codes.ndim != 2 or codes.shape[0] != books or codes.is_floating_point():
                raise ValueError(f"its codes must be integers [{books}, T], got {codes.dtype} {tuple(codes.shape)}")
            if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < size):
                raise ValueError(f"its codes must lie in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}")
            return codes
        if segment.audio is None:
            raise ValueError("it has neither audio nor codes; give it one of them")
        audio = as_audio(segment.audio)
        if not len(audio):
            return torch.zeros(books, 0, dtype=torch.int64)
        return self.codec.encode(audio[None, None])[0].cpu()
