"""Speech from text and conversation context, with Sesame's Python API.

segments + text --tokenizer, codec--> frames --CSM, step by step--> codes [K, T] --codec--> audio [num_samples]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.codec import Codec
from csm.frames import TurnTokens, conversation_frames, is_eos_frame
from csm.inference.cache import KVCache
from csm.inference.sampling import sample_code
from csm.model.csm import CSM
from csm.text import TextTokenizer


@dataclass
class Segment:
    """One turn of a conversation: what was said, by whom, and how it sounds.

    audio: float32 [num_samples] at the codec's sample rate; codes: int64 [K, T]. One of the two is enough; codes
    win, so that generated turns return to the context exactly as the model produced them.
    """

    speaker: int
    text: str
    audio: Tensor | None = None
    codes: Tensor | None = None


@dataclass
class GeneratedSegment:
    """A generated turn. finish_reason: "stop" (the model ended the turn) or "length" (it hit the limit)."""

    segment: Segment
    finish_reason: str

    @property
    def frames(self) -> int:
        return self.segment.codes.shape[1]


class Generator:
    """A model, its codec and its tokenizer, ready to speak.

    model is used as it is (dtype, device); it is put into eval mode.
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
        """Of the audio taken and returned, in Hz."""
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
        """Speaks `text` as `speaker` after `context`; float32 `[num_samples]` on the CPU.

        Raises ValueError if the context leaves no room for `max_audio_length_ms` of audio.
        """
        result = self.generate_segment(text, speaker, context, max_audio_length_ms, temperature, topk, seed)
        return result.segment.audio

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
        max_frames = int(max_audio_length_ms / 1000 * self.codec.frame_rate)
        turns = [
            TurnTokens(self.tokenizer.encode_turn(turn.text, turn.speaker), self._segment_codes(turn))
            for turn in context
        ]
        turns.append(TurnTokens(self.tokenizer.encode_turn(text, speaker), None))
        frames = conversation_frames(turns, self.model.config.num_codebooks)
        codes = self.generate_codes(frames.tokens, frames.mask, max_frames, temperature, topk, seed)
        reason = "stop" if codes.shape[1] < max_frames else "length"
        audio = torch.zeros(0)
        if codes.shape[1]:
            audio = self.codec.decode(codes[None])[0, 0].float().cpu()
        return GeneratedSegment(Segment(speaker, text, audio, codes), reason)

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
        `temperature=0` is greedy; `seed` makes sampling reproducible whatever else draws random numbers.
        Raises ValueError if prompt and `max_frames` do not fit into the model's positions (Sesame's rule).
        """
        limit = self.model.config.max_seq_len - max_frames
        if tokens.shape[0] >= limit:
            raise ValueError(
                f"prompt of {tokens.shape[0]} positions is too long: it must stay below max_seq_len - max_frames = "
                f"{self.model.config.max_seq_len} - {max_frames} = {limit}; "
                "give less context or a smaller max_audio_length_ms"
            )
        frames = []
        for frame in self._frames(tokens, mask, max_frames, temperature, topk, seed):
            if is_eos_frame(frame):
                break
            frames.append(frame.cpu())
        if not frames:
            return torch.zeros(self.model.config.num_codebooks, 0, dtype=torch.int64)
        return torch.stack(frames, dim=1)

    @torch.inference_mode()
    def _frames(
        self, tokens: Tensor, mask: Tensor, max_frames: int, temperature: float, topk: int, seed: int | None
    ) -> Iterator[Tensor]:
        """Yields frames `[K]`, the end-of-speech frame included."""
        config, device, prompt = self.model.config, self.device, tokens.shape[0]
        noise = None if seed is None else torch.Generator(device).manual_seed(seed)
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
            frame = self._sample_frame(states[:, -1], depth_cache, temperature, topk, noise)  # [K]
            yield frame
            frame_tokens[0, 0, :-1] = frame
            step_tokens, step_mask = frame_tokens, frame_mask

    def _sample_frame(
        self, state: Tensor, cache: KVCache, temperature: float, topk: int, noise: torch.Generator | None
    ) -> Tensor:
        """All K codes of one frame from the backbone state `[1, D]` before it."""
        model, size = self.model, self.model.config.codebook_size
        code = sample_code(model.codebook0_head(state), temperature, topk, size, noise)  # [1]
        codes = [code]
        cache.reset()
        inputs = torch.stack((state, model.embed_codes(code[:, None])[:, 0]), dim=1)  # [1, 2, D]
        for codebook in range(1, model.config.num_codebooks):
            positions = torch.arange(cache.length, cache.length + inputs.shape[1], device=state.device)[None]
            hidden = model.decoder(model.projection(inputs), positions, cache=cache)  # [1, s, d]
            cache.advance(inputs.shape[1])
            logits = hidden[:, -1] @ model.audio_head[codebook - 1]  # [1, V]
            code = sample_code(logits, temperature, topk, size, noise)
            codes.append(code)
            inputs = model.embed_codes(code[:, None], first_codebook=codebook)  # [1, 1, D]
        return torch.cat(codes)

    def _segment_codes(self, segment: Segment) -> Tensor:
        if segment.codes is not None:
            return segment.codes
        if segment.audio is None:
            raise ValueError(f"context segment {segment.text!r} has neither audio nor codes; give it one of them")
        if segment.audio.ndim != 1:
            raise ValueError(f"context audio must be mono, shape [num_samples]; got {tuple(segment.audio.shape)}")
        return self.codec.encode(segment.audio[None, None])[0].cpu()
