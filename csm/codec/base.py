"""The interface of audio codecs, the identity of a codec in files, and batched encoding.

A codec turns 24 kHz mono audio into `K` codes per 80 ms frame and back. Turns of a conversation are always encoded
on their own, from a fresh codec state, in training data and at inference alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from csm.codec.streaming import StreamingDecoder


@dataclass(frozen=True)
class CodecInfo:
    """Identity of a codec, as datasets and checkpoints record it of the codec that made their codes."""

    name: str  # "mimi" or "spectral"
    weights_hash: str  # `hash_tensors` of the weights
    num_codebooks: int  # K
    codebook_size: int  # ids 0 .. codebook_size - 1 in every codebook
    frame_rate: float  # frames per second
    sample_rate: int  # Hz

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CodecInfo:
        """Inverse of `to_dict`. Raises ValueError if a field is missing or unknown."""
        expected = {f.name for f in fields(cls)}
        if set(values) != expected:
            raise ValueError(f"codec info has the fields {sorted(values)}, expected {sorted(expected)}")
        return cls(**values)


def check_same_codec(a: CodecInfo, b: CodecInfo, where: str) -> None:
    """Raises ValueError if codes of codec `a` mean something else to codec `b`.

    where: begins the message, and names the two, for example "dataset data/calls and checkpoint runs/a".
    """
    different = [f.name for f in fields(CodecInfo) if getattr(a, f.name) != getattr(b, f.name)]
    if different:
        details = ", ".join(f"{name} {getattr(a, name)} against {getattr(b, name)}" for name in different)
        raise ValueError(f"{where}: made with different codecs ({details}); use one codec for both")


class Codec(Protocol):
    """An audio codec; implementations inherit from it and provide all that has no body here."""

    info: CodecInfo
    device: torch.device

    def encode(self, audio: Tensor) -> Tensor:
        """Float audio [B, 1, N] at `sample_rate` -> int64 codes [B, K, T], T = ceil(N / samples_per_frame)."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Integer codes [B, k, T] -> float32 audio [B, 1, T * samples_per_frame], from the first k of K codebooks."""
        ...

    def streaming_decoder(self, slots: int) -> StreamingDecoder:
        """A decoder of `slots` streams, frame by frame, with states of its own. Raises ValueError for no slots."""
        ...

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def identity(self) -> str:
        """Hash of the weights: equal if and only if the same audio gives the same codes."""
        return self.info.weights_hash

    @property
    def sample_rate(self) -> int:
        return self.info.sample_rate

    @property
    def frame_rate(self) -> float:
        return self.info.frame_rate

    @property
    def num_codebooks(self) -> int:
        return self.info.num_codebooks

    @property
    def codebook_size(self) -> int:
        return self.info.codebook_size

    @property
    def samples_per_frame(self) -> int:
        return round(self.info.sample_rate / self.info.frame_rate)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, dtypes, shapes and values, independent of the file format they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def check_audio(audio: Tensor) -> None:
    """Raises ValueError unless `audio` is a non-empty float batch [B, 1, N] of finite samples."""
    if audio.ndim != 3 or audio.shape[1] != 1 or audio.numel() == 0 or not audio.is_floating_point():
        raise ValueError(f"codec input must be float audio [B, 1, N], got {audio.dtype} {tuple(audio.shape)}")
    if not audio.isfinite().all():
        raise ValueError("codec input has NaN or infinite samples; replace or remove the recording")


def check_codes(codes: Tensor, info: CodecInfo) -> None:
    """Raises ValueError unless `codes` is an integer batch [B, 1..K, T] of `info`'s codec, every id in range."""
    books = info.num_codebooks
    if codes.ndim != 3 or codes.shape[1] > books or codes.numel() == 0 or codes.is_floating_point():
        shape = tuple(codes.shape)
        raise ValueError(f"{info.name} codes must be integers [B, 1..{books}, T], got {codes.dtype} {shape}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= info.codebook_size:
        raise ValueError(f"{info.name} codes must lie in 0..{info.codebook_size - 1}, got {low}..{high}")


def encode_turns(codec: Codec, waveforms: Sequence[Tensor], batch_seconds: float = 60.0) -> list[Tensor]:
    """Encodes turns, each from a fresh codec state, padding turns of similar length together.

    Args:
        waveforms: 1-D float tensors at the codec's sample rate, in any order.
        batch_seconds: audio per codec call, padding included; a longer turn is a batch of its own.

    Returns:
        One int64 tensor [K, T_i] on the CPU per waveform, in the order given, T_i = ceil(N_i / samples_per_frame).
        The codecs are causal or local, so the zeros after a turn in its batch do not change its codes.

    Raises:
        ValueError: a waveform is empty or not 1-D (its position is named).
    """
    for i, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or waveform.numel() == 0:
            raise ValueError(f"turn {i}: expected a non-empty 1-D waveform, got shape {tuple(waveform.shape)}")
    budget = batch_seconds * codec.sample_rate
    shortest_first = sorted(range(len(waveforms)), key=lambda i: waveforms[i].numel())
    batches: list[list[int]] = []
    for i in shortest_first:  # the turn joining a batch is its longest, so its length is the padded length
        if batches and (len(batches[-1]) + 1) * waveforms[i].numel() <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])

    codes: list[Tensor] = [torch.empty(0)] * len(waveforms)
    for batch in batches:
        audio = torch.nn.utils.rnn.pad_sequence([waveforms[i] for i in batch], batch_first=True)
        encoded = codec.encode(audio[:, None].to(codec.device)).cpu()
        for row, i in zip(encoded, batch, strict=True):
            frames = -(-waveforms[i].numel() // codec.samples_per_frame)
            codes[i] = row[:, :frames].clone()
    return codes
