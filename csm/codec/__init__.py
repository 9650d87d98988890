"""Audio codecs behind one interface: `mimi` (Kyutai's, for real work) and `spectral` (built in, no download)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from csm.codec.base import Codec, CodecInfo, check_same_codec, encode_turns
from csm.codec.spectral import SpectralCodec
from csm.config import CodecConfig, CodecKind

if TYPE_CHECKING:
    from csm.codec.mimi import MimiCodec
    from csm.codec.mimi_transformers import TransformersMimiCodec

__all__ = ["Codec", "CodecInfo", "SpectralCodec", "check_same_codec", "encode_turns", "load_codec", "mimi_codec"]


def mimi_codec() -> type[MimiCodec] | type[TransformersMimiCodec]:
    """Mimi through moshi, or, where moshi is not installed, through a transformers that computes the same.

    Raises ModuleNotFoundError, which names the remedy, where neither is there. Both are slow to import.
    """
    if find_spec("moshi") is None:
        from csm.codec.mimi_transformers import TransformersMimiCodec, has_sliding_window

        if has_sliding_window():
            return TransformersMimiCodec
    from csm.codec.mimi import MimiCodec

    return MimiCodec


def load_codec(cfg: CodecConfig) -> Codec:
    """Builds the codec that `cfg` describes, on `cfg.device`.

    Raises:
        FileNotFoundError: the weights are not there, or the hub cannot be reached.
        ValueError: no path for a spectral codec, or a codec of another shape than `cfg` says.
    """
    if cfg.kind is CodecKind.mimi:
        codec: Codec = mimi_codec().load(cfg.path, cfg.repo, cfg.num_codebooks, cfg.device)
    elif cfg.path is None:
        raise ValueError("codec=spectral needs codec.path=FILE; a prepared dataset has its fitted codec in its folder")
    else:
        codec = SpectralCodec.load(cfg.path, cfg.device)
    shape, expected = (codec.num_codebooks, codec.codebook_size), (cfg.num_codebooks, cfg.codebook_size)
    if shape != expected:
        raise ValueError(
            f"codec {cfg.path or cfg.repo} has {shape[0]} codebooks of {shape[1]} entries, but codec.num_codebooks "
            f"and codec.codebook_size are {expected[0]} and {expected[1]}; set them to the codec's values"
        )
    return codec
