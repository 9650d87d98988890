"""Sesame's config.json: two "flavors" name the shapes of the stacks (SesameAILabs/csm models.py).

Sesame published llama-1B and llama-100M; MisoTTS, which has the same layout but no config.json, llama-8B and
llama-300M; Marvis llama-250M and llama-60M, beside transformers' keys, which state the shape (csm/formats/hf.py).
For other shapes we write names that are recognizably ours (custom-...), which no other code knows, and the exact shape
under "csm", which it ignores.
"""

from __future__ import annotations

from typing import Any

from omegaconf.errors import OmegaConfBaseException

from csm.config import RESERVED_CODES, CSMConfig, TransformerConfig
from csm.formats.native import model_config, plain_values
from csm.formats.tensors import Weights

FLAVORS = {
    # SesameAILabs/csm models.py
    "llama-1B": TransformerConfig(layers=16, dim=2048, heads=32, kv_heads=8, ffn_dim=8192),
    "llama-100M": TransformerConfig(layers=4, dim=1024, heads=8, kv_heads=2, ffn_dim=8192),
    # MisoLabsAI/MisoTTS models.py
    "llama-8B": TransformerConfig(layers=32, dim=4096, heads=32, kv_heads=8, ffn_dim=14336),
    "llama-300M": TransformerConfig(layers=8, dim=1536, heads=24, kv_heads=6, ffn_dim=6912),
    # the trainer of Marvis, flavors.py
    "llama-250M": TransformerConfig(layers=6, dim=1536, heads=12, kv_heads=3, ffn_dim=8192),
    "llama-60M": TransformerConfig(layers=4, dim=1024, heads=8, kv_heads=2, ffn_dim=4096),
}


def write_config(config: CSMConfig) -> dict[str, Any]:
    """Contents of Sesame's config.json, and our exact shape next to them."""
    return {
        "backbone_flavor": _flavor(config.backbone),
        "decoder_flavor": _flavor(config.decoder),
        "text_vocab_size": config.text_vocab_size,
        "audio_vocab_size": config.audio_vocab_size,
        "audio_num_codebooks": config.num_codebooks,
        "csm": plain_values(config),
    }


def read_config(content: dict[str, Any], where: str) -> CSMConfig:
    """The model's shape from Sesame's config.json. Raises ValueError naming what is missing or unknown."""
    try:
        if "csm" in content:
            config = model_config(content["csm"])
        else:
            config = CSMConfig(
                backbone=FLAVORS[content["backbone_flavor"]],
                decoder=FLAVORS[content["decoder_flavor"]],
                text_vocab_size=int(content["text_vocab_size"]),
                codebook_size=int(content["audio_vocab_size"]) - RESERVED_CODES,
                num_codebooks=int(content["audio_num_codebooks"]),
            )
    except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
        raise ValueError(
            f"{where}: not a configuration in Sesame's layout ({error!r}); it needs backbone_flavor and decoder_flavor "
            f"(one of {', '.join(FLAVORS)}), text_vocab_size, audio_vocab_size and audio_num_codebooks"
        ) from None
    if (config.audio_vocab_size, config.num_codebooks, config.text_vocab_size) != tuple(
        content.get(key) for key in ("audio_vocab_size", "audio_num_codebooks", "text_vocab_size")
    ):
        raise ValueError(f'{where}: its "csm" entry contradicts the vocabulary sizes or audio_num_codebooks')
    return config


def config_from_weights(weights: Weights, where: str) -> CSMConfig:
    """The shape of a lone `ckpt.pt`, which comes without config.json, from its tensors and the known flavors.

    Raises ValueError if a needed tensor is missing or no flavor fits.
    """
    try:
        text_vocab = weights["text_embeddings.weight"].shape[0]
        codebooks = weights["audio_head"].shape[0] + 1
        audio_vocab = weights["audio_head"].shape[2]
        return CSMConfig(
            backbone=_flavor_of(weights, "backbone", where),
            decoder=_flavor_of(weights, "decoder", where),
            text_vocab_size=text_vocab,
            codebook_size=audio_vocab - RESERVED_CODES,
            num_codebooks=codebooks,
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"{where}: not a CSM in Sesame's layout, it lacks {error}") from None


def _flavor_of(weights: Weights, stack: str, where: str) -> TransformerConfig:
    layers = len({name.split(".")[2] for name in weights if name.startswith(f"{stack}.layers.")})
    ffn_dim, dim = weights[f"{stack}.layers.0.mlp.w1.weight"].shape
    for flavor in FLAVORS.values():
        if (flavor.layers, flavor.dim, flavor.ffn_dim) == (layers, dim, ffn_dim):
            return flavor
    raise ValueError(
        f"{where}: its {stack} ({layers} layers of width {dim}, ffn {ffn_dim}) is none of the known flavors "
        f"({', '.join(FLAVORS)}), and tensors do not show the number of heads; put Sesame's config.json next to it"
    )


def _flavor(stack: TransformerConfig) -> str:
    for name, flavor in FLAVORS.items():
        if flavor == stack:
            return name
    return f"custom-{stack.layers}x{stack.dim}"
