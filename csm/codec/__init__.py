"""Audio codecs behind one interface: `mimi` (Kyutai's, for real work) and `spectral` (built in, no download)."""

from __future__ import annotations

from csm.codec.base import Codec, CodecInfo, check_same_codec, encode_turns
from csm.codec.spectral import SpectralCodec
from csm.config import CodecConfig, CodecKind

__all__ = ["Codec", "CodecInfo", "SpectralCodec", "check_same_codec", "encode_turns", "load_codec"]


def load_codec(cfg: CodecConfig) -> Codec:
    """Builds the codec that `cfg` describes, on `cfg.device`.

    Raises:
        FileNotFoundError: the weights are not there, or the hub cannot be reached.
        ValueError: no path for a spectral codec, or a codec of another shape than `cfg` says.
    """
    if cfg.kind is CodecKind.mimi:
        from csm.codec.mimi import MimiCodec  # moshi is slow to import and not needed for the spectral codec

        codec: Codec = MimiCodec.load(cfg.path, cfg.repo, cfg.num_codebooks, cfg.device)
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
