"""config.json and generation_config.json of Hugging Face's CsmForConditionalGeneration.

Written with transformers 4's keys, which version 5 reads too, and rotary positions under version 5's as well.
Everything that transformers would fill in with a default is written out: its `CsmConfig()` has no rotary scaling, for
one, which would make 17 of the released backbone's 32 frequencies wrong.
"""

from __future__ import annotations

from typing import Any

from csm.config import RESERVED_CODES, CSMConfig, RopeConfig, TransformerConfig

MAX_NEW_FRAMES = 125
"""10 s, as in the released generation_config.json."""

TRANSFORMERS_VERSION = "4.57.0"
"""The version named in config.json, whose keys it has. Without one, transformers 4.57.3 and later take the tokenizer of
any local directory for one of Mistral's with a known fault, and advise to change it."""


_SHARED_DEFAULTS = {
    "vocab_size": 2051,
    "num_codebooks": 32,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
}
BACKBONE_DEFAULTS: dict[str, Any] = {
    **_SHARED_DEFAULTS,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "text_vocab_size": 128_256,
    "max_position_embeddings": 2048,
    "codebook_eos_token_id": 0,
    "codec_config": None,
}
DEPTH_DEFAULTS: dict[str, Any] = {
    **_SHARED_DEFAULTS,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
"""transformers' CsmConfig and CsmDepthDecoderConfig, the same in 4.52 and 5.24."""


def write_config(
    config: CSMConfig,
    codec_config: dict[str, Any],
    bos_token_id: int,
    pad_token_id: int,
    audio_token_id: int,
    audio_eos_token_id: int,
    dtype: str,
) -> dict[str, Any]:
    """Contents of config.json. dtype: of the weights, as torch names it without "torch."."""
    shared = {
        "vocab_size": config.audio_vocab_size,
        "num_codebooks": config.num_codebooks,
        "hidden_act": "silu",
        "initializer_range": config.initializer_std,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "use_cache": True,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    depth_positions = config.num_codebooks + 1
    return {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        "transformers_version": TRANSFORMERS_VERSION,
        **shared,
        **_stack(config.backbone),
        "max_position_embeddings": config.max_seq_len,
        **_rope(config.rope, config.max_seq_len),
        "text_vocab_size": config.text_vocab_size,
        "tie_codebooks_embeddings": True,
        "bos_token_id": bos_token_id,
        "eos_token_id": None,
        "pad_token_id": pad_token_id,
        "audio_token_id": audio_token_id,
        "audio_eos_token_id": audio_eos_token_id,
        "codebook_eos_token_id": 0,
        "codebook_pad_token_id": config.audio_vocab_size - 1,
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            **shared,
            **_stack(config.decoder),
            "backbone_hidden_size": config.backbone.dim,
            "max_position_embeddings": depth_positions,
            **_rope(config.rope, depth_positions),
        },
        "codec_config": codec_config,
    }


def write_generation_config(config: CSMConfig, bos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    """Contents of generation_config.json: Sesame's sampling, without the reserved codes, which no codec decodes."""
    reserved = list(range(config.codebook_size, config.audio_vocab_size))
    steps = config.num_codebooks - 1
    return {
        "bos_token_id": bos_token_id,
        "pad_token_id": pad_token_id,
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 50,
        "max_new_tokens": MAX_NEW_FRAMES,
        "suppress_tokens": reserved,
        "depth_decoder_do_sample": True,
        "depth_decoder_temperature": 0.9,
        "depth_decoder_top_k": 50,
        "depth_decoder_min_new_tokens": steps,
        "depth_decoder_max_new_tokens": steps,
        "depth_decoder_suppress_tokens": reserved,
    }


def read_config(content: dict[str, Any], where: str) -> CSMConfig:
    """The model's shape from transformers' config.json.

    Configurations of transformers 4.52 to 5 are read: rotary positions under either's names, and whatever a file
    leaves out has the default that it has there. Raises ValueError for what our model does not have (biases, other
    activations, no rotary scaling in one stack...).
    """
    try:
        depth = DEPTH_DEFAULTS | _canonical(content["depth_decoder_config"])
        content = BACKBONE_DEFAULTS | _canonical(content)
        for part, entry in (("backbone", content), ("depth decoder", depth)):
            _check_supported(entry, f"{where}, {part}")
        rope = read_rope(content, where)
        if read_rope(depth, where) != rope:
            raise ValueError(f"{where}: rotary positions of backbone and depth decoder differ, CSM has them alike")
        if (depth["num_codebooks"], depth["vocab_size"]) != (content["num_codebooks"], content["vocab_size"]):
            raise ValueError(f"{where}: num_codebooks or vocab_size of backbone and depth decoder differ")
        if content["rms_norm_eps"] != depth["rms_norm_eps"]:
            raise ValueError(
                f"{where}: rms_norm_eps of backbone ({content['rms_norm_eps']}) and depth decoder "
                f"({depth['rms_norm_eps']}) differ, CSM has one"
            )
        if content["codebook_eos_token_id"] not in (0, [0]):
            raise ValueError(
                f"{where}: codebook_eos_token_id={content['codebook_eos_token_id']} is not supported, a turn of CSM "
                "ends with a frame of zeros"
            )
        config = CSMConfig(
            backbone=_read_stack(content),
            decoder=_read_stack(depth),
            text_vocab_size=content["text_vocab_size"],
            codebook_size=content["vocab_size"] - RESERVED_CODES,
            num_codebooks=content["num_codebooks"],
            max_seq_len=content["max_position_embeddings"],
            norm_eps=content["rms_norm_eps"],
            rope=rope,
            initializer_std=content["initializer_range"],
        )
        codec_size = (content["codec_config"] or {}).get("codebook_size", 2048)
        codec_books = codec_codebooks(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a configuration of transformers' CSM ({error!r})") from None
    if codec_size != config.codebook_size or codec_books < config.num_codebooks:
        raise ValueError(
            f"{where}: the model reads {config.num_codebooks} codebooks of {config.codebook_size} (vocab_size - "
            f"{RESERVED_CODES}), its codec has {codec_books} of {codec_size}"
        )
    return config


def codec_codebooks(content: dict[str, Any]) -> int:
    """Codebooks of the codec that goes with a model's config.json, as MimiConfig reads it."""
    return (content.get("codec_config") or {}).get("num_quantizers", 32)


def _stack(stack: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": stack.dim,
        "intermediate_size": stack.ffn_dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.kv_heads,
        "head_dim": stack.dim // stack.heads,
    }


def _canonical(entry: dict[str, Any]) -> dict[str, Any]:
    """A stack's entries under their own names: transformers reads `codebook_size` as another name of `vocab_size`."""
    entry = dict(entry)
    if "codebook_size" in entry:
        entry.setdefault("vocab_size", entry.pop("codebook_size"))
    return entry


def _read_stack(entry: dict[str, Any]) -> TransformerConfig:
    heads = entry["num_attention_heads"]
    return TransformerConfig(
        layers=entry["num_hidden_layers"],
        dim=entry["hidden_size"],
        heads=heads,
        kv_heads=heads if entry["num_key_value_heads"] is None else entry["num_key_value_heads"],
        ffn_dim=entry["intermediate_size"],
    )


def _check_supported(entry: dict[str, Any], where: str) -> None:
    head_dim = entry["hidden_size"] // entry["num_attention_heads"]
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "head_dim": head_dim}
    for key, value in wanted.items():
        if entry.get(key, value) not in (value, None):
            raise ValueError(f"{where}: {key}={entry[key]!r} is not supported, CSM has {value!r}")
    if entry.get("tie_codebooks_embeddings", True) is not True:
        raise ValueError(f"{where}: tie_codebooks_embeddings must be true, CSM has one audio embedding")


def _rope(rope: RopeConfig, max_seq_len: int) -> dict[str, Any]:
    """Rotary positions as transformers wants them: version 4 as rope_theta and rope_scaling, 5 as rope_parameters.

    Both demand original_max_position_embeddings < max_position_embeddings. Only the quotients with the two factors
    matter, so all three are divided by the power of two that brings the first to half the second or less: exact in
    floating point, and for csm-1b the very numbers of the published file (1024, 0.5, 0.125 and 16, 2^-7, 2^-9).
    """
    shrink = 1
    while rope.old_context / shrink > max_seq_len / 2:
        shrink *= 2
    old_context = rope.old_context / shrink
    scaling = {
        "rope_type": "llama3",
        "factor": rope.scale_factor,
        "low_freq_factor": rope.low_freq_factor / shrink,
        "high_freq_factor": rope.high_freq_factor / shrink,
        "original_max_position_embeddings": int(old_context) if old_context.is_integer() else old_context,
    }
    base = {"rope_theta": rope.base}
    return {**base, "rope_scaling": scaling, "rope_parameters": {**base, **scaling}}


def read_rope(entry: dict[str, Any], where: str) -> RopeConfig:
    """Rotary positions of a transformers config.json (CSM's, its depth decoder's, Llama's), low_freq_factor made 1."""
    # transformers 5 keeps theta and scaling together under rope_parameters.
    scaling = entry.get("rope_scaling") or entry.get("rope_parameters")
    base = float(entry.get("rope_theta") or (scaling or {}).get("rope_theta", 500_000))
    kind = None if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if scaling is None or kind == "default":
        return RopeConfig(base=base, scale_factor=1.0)
    if kind != "llama3":
        raise ValueError(f"{where}: rope_scaling of type {kind!r} is not supported, only llama3")
    grow = 1 / scaling["low_freq_factor"]
    return RopeConfig(
        base=base,
        scale_factor=float(scaling["factor"]),
        low_freq_factor=1.0,
        high_freq_factor=scaling["high_freq_factor"] * grow,
        old_context=round(scaling["original_max_position_embeddings"] * grow),
    )
