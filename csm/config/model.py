"""Options of the model, the codec and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

RESERVED_CODES = 3
"""Ids per codebook beyond the codec's own: the released CSM has 2051 = 2048 + 3 (unused start/stop/pad ids)."""


@dataclass
class RopeConfig:
    """Llama 3's scaled rotary embedding. The released CSM uses these values in both stacks."""

    base: float = 500_000.0
    """Base of the rotary frequencies (theta)."""
    scale_factor: float = 32.0
    """Factor by which low frequencies are slowed down; 1.0 disables the scaling."""
    low_freq_factor: float = 1.0
    """Wavelengths longer than `old_context / low_freq_factor` are scaled in full."""
    high_freq_factor: float = 4.0
    """Wavelengths shorter than `old_context / high_freq_factor` are not scaled."""
    old_context: int = 8192
    """Context length, in positions, for which the unscaled frequencies were trained."""


@dataclass
class TransformerConfig:
    """Shape of one Llama-style stack."""

    layers: int = MISSING
    """Number of blocks."""
    dim: int = MISSING
    """Width of the residual stream."""
    heads: int = MISSING
    """Query heads per attention layer; divides `dim`."""
    kv_heads: int = MISSING
    """Key and value heads (grouped-query attention); divides `heads`."""
    ffn_dim: int = MISSING
    """Hidden width of the SwiGLU feed-forward layers."""


class CodeLayout(Enum):
    """How the codes of a frame are laid out and predicted (csm/arrangement.py)."""

    depth = "depth"
    """CSM: a frame is one position; the backbone predicts codebook 0, the depth decoder the others."""
    delay = "delay"
    """A baseline for research, MusicGen's delay pattern: code k of a frame lies k positions after its codebook 0, one
    stack predicts all codes of a position."""
    flat = "flat"
    """A baseline for research, AudioLM's flattened codes: every code is a position, one stack predicts them in turn."""


@dataclass
class CSMConfig:
    """Shape of a CSM: a backbone over positions and a depth decoder over the codebooks of one frame."""

    backbone: TransformerConfig = field(default_factory=TransformerConfig)
    """The stack that reads the conversation and predicts codebook 0 of the next frame; without a depth decoder, all."""
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    """The stack that predicts the remaining codebooks of a frame, one after another; only `layout=depth` has it."""
    text_vocab_size: int = MISSING
    """Number of text token ids."""
    codebook_size: int = MISSING
    """Entries per codebook of the codec, without the reserved ids."""
    num_codebooks: int = MISSING
    """Codebooks per frame (K)."""
    max_seq_len: int = 2048
    """Longest sequence, in positions, that the backbone is used with."""
    norm_eps: float = 1e-5
    """Epsilon of the RMSNorm layers."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Rotary position embedding of both stacks."""
    initializer_std: float = 0.02
    """Standard deviation of the normal distribution that new weights are drawn from."""
    layout: CodeLayout = CodeLayout.depth
    """How codes are laid out and predicted. `delay` and `flat` can be trained and scored, but not speak
    (docs/whitepaper.md)."""

    @property
    def audio_vocab_size(self) -> int:
        """V: ids per codebook, reserved ones included."""
        return self.codebook_size + RESERVED_CODES


class CodecKind(Enum):
    mimi = "mimi"
    """Kyutai's Mimi: 12.5 frames a second at 24 kHz; weights come from the hub."""
    spectral = "spectral"
    """A small codec of this project, fitted to the user's recordings; needs no download."""


@dataclass
class CodecConfig:
    """Audio codec between waveforms and codes."""

    kind: CodecKind = CodecKind.mimi
    """Name of the codec."""
    path: str | None = None
    """Weights file. null: Mimi is read from `repo`, a spectral codec from the dataset folder."""
    repo: str = "kyutai/moshiko-pytorch-bf16"
    """Hub repository of Mimi's weights; ignored by other codecs."""
    num_codebooks: int = 32
    """Codebooks per frame (K); Mimi has up to 32."""
    codebook_size: int = 2048
    """Entries per codebook; 2048 for Mimi."""
    device: str = "cpu"
    """Device that encodes and decodes, such as `cpu` or `cuda`."""


class TokenizerKind(Enum):
    hf = "hf"
    """Any tokenizer of Hugging Face tokenizers or transformers."""
    bytes = "bytes"
    """UTF-8 bytes; built in, needs no files."""


@dataclass
class TokenizerConfig:
    """Text tokenizer."""

    kind: TokenizerKind = TokenizerKind.hf
    """Name of the tokenizer."""
    path: str | None = None
    """Directory, tokenizer.json or hub repository id; `hf` only."""
    vocab_size: int = 128_256
    """Number of token ids that the text embedding holds."""
    prompt: str | None = None
    """How speaker and text of a turn are written, such as `[{speaker}] {text}` for MisoTTS. null: as the tokenizer's
    own files say, which what `csm export` writes does, else `[{speaker}]{text}`, as in Sesame's models."""
    normalize: str | None = None
    """Normalizer of texts, applied before they are encoded, in training and generation alike: `english` writes numbers,
    dates, times and money as words. null: as the tokenizer's own files say, else none."""
