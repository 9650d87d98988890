"""Mimi's weights in two layouts: moshi's (the published file that our codec loads) and Hugging Face's `MimiModel`.

The same tensors under other names, but for one: moshi keeps the query, key and value projections of its transformers
in one matrix, with queries and keys in the order of interleaved rotary positions; Hugging Face keeps three, in
half-split order (csm/formats/weight_names.py). Source: transformers' MimiModel and moshi's loaders, compared by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from csm.formats.weight_names import interleave, split_halves

HEADS = 8
TRANSPOSED = ("2", "5", "8", "11")  # layers of the decoder that are transposed convolutions, one for each stride
NUM_TENSORS = 318  # of moshi's layout
CODEBOOKS = 32

HF_CODEC_CONFIG: dict[str, Any] = {
    "model_type": "mimi",
    "sampling_rate": 24_000,
    "audio_channels": 1,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 2048,
    "codebook_dim": 256,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
    "use_conv_shortcut": False,
    "vector_quantization_hidden_dimension": 256,
    "upsample_groups": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "gelu",
    "max_position_embeddings": 8000,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "sliding_window": 250,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "layer_scale_initial_scale": 0.01,
    "use_cache": False,
    "use_streaming": False,
    "torch_dtype": "float32",
}
"""Kyutai's Mimi with 32 codebooks, as transformers' MimiConfig."""

# (moshi, Hugging Face), each a pattern with its groups in order
_TRANSFORMER = [
    (r"self_attn\.out_projs\.0\.weight", "self_attn.o_proj.weight"),
    (r"linear1\.weight", "mlp.fc1.weight"),
    (r"linear2\.weight", "mlp.fc2.weight"),
    (r"norm1\.(weight|bias)", r"input_layernorm.\1"),
    (r"norm2\.(weight|bias)", r"post_attention_layernorm.\1"),
    (r"layer_scale_1\.scale", "self_attn_layer_scale.scale"),
    (r"layer_scale_2\.scale", "mlp_layer_scale.scale"),
]
_CODEBOOK = {"_initialized": "initialized", "cluster_usage": "cluster_usage", "embedding_sum": "embed_sum"}
_QUANTIZERS = {"rvq_first": "semantic_residual_vector_quantizer", "rvq_rest": "acoustic_residual_vector_quantizer"}
_IN_PROJ = re.compile(r"(encoder|decoder)_transformer\.transformer\.layers\.(\d+)\.self_attn\.in_projs\.0\.weight")


def moshi_to_hf(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """moshi's tensors as Hugging Face's. Raises ValueError naming the first unknown one, or if some are missing."""
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _IN_PROJ.fullmatch(name)
        if match is None:
            converted[_hf_name(name)] = tensor
            continue
        prefix = f"{match[1]}_transformer.layers.{match[2]}.self_attn"
        q, k, v = tensor.chunk(3)
        converted[f"{prefix}.q_proj.weight"] = split_halves(q, HEADS)
        converted[f"{prefix}.k_proj.weight"] = split_halves(k, HEADS)
        converted[f"{prefix}.v_proj.weight"] = v.contiguous()
    _check_count(len(weights))
    return converted


def first_codebooks(weights: Mapping[str, Tensor], num_codebooks: int) -> dict[str, Tensor]:
    """Hugging Face's tensors of a Mimi that has only the first codebooks, as its config.json then says."""
    beyond = tuple(f"quantizer.{_QUANTIZERS['rvq_rest']}.layers.{n}." for n in range(num_codebooks - 1, CODEBOOKS))
    return {name: tensor for name, tensor in weights.items() if not name.startswith(beyond)}


def hf_to_moshi(weights: Mapping[str, Tensor], num_codebooks: int = CODEBOOKS) -> dict[str, Tensor]:
    """Inverse of `moshi_to_hf`, bit for bit. Raises ValueError likewise.

    num_codebooks: that `weights` have. The others are zeros, since moshi's model always has all 32.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(encoder|decoder)_transformer\.layers\.(\d+)\.self_attn\.([qkv])_proj\.weight", name)
        if match is None:
            converted[_moshi_name(name)] = tensor
        elif match[3] == "q":
            k, v = (weights.get(name.replace("q_proj", f"{part}_proj")) for part in "kv")
            if k is None or v is None:
                raise ValueError(f"Mimi weights: {name} comes without its key or value projection")
            joined = torch.cat((interleave(tensor, HEADS), interleave(k, HEADS), v))
            converted[f"{match[1]}_transformer.transformer.layers.{match[2]}.self_attn.in_projs.0.weight"] = joined
    _check_count(len(converted), num_codebooks)
    for part in _CODEBOOK:
        empty = torch.zeros_like(converted[f"quantizer.rvq_first.vq.layers.0._codebook.{part}"])
        for number in range(num_codebooks - 1, CODEBOOKS - 1):
            converted[f"quantizer.rvq_rest.vq.layers.{number}._codebook.{part}"] = empty.clone()
    return converted


def _check_count(found: int, num_codebooks: int = CODEBOOKS) -> None:
    expected = NUM_TENSORS - len(_CODEBOOK) * (CODEBOOKS - num_codebooks)
    if found != expected:
        raise ValueError(f"Mimi weights: {found} tensors, expected {expected}; copy the model again")


def _hf_name(name: str) -> str:
    """moshi's name -> Hugging Face's, the joint projections aside."""
    if match := re.fullmatch(
        r"(encoder|decoder)\.model\.(\d+)\.(block\.\d+\.)?conv(tr)?\.conv(tr)?\.(weight|bias)", name
    ):
        return f"{match[1]}.layers.{match[2]}.{match[3] or ''}conv.{match[6]}"
    if match := re.fullmatch(r"(encoder|decoder)_transformer\.transformer\.layers\.(\d+)\.(.+)", name):
        for moshi, theirs in _TRANSFORMER:
            if re.fullmatch(moshi, match[3]):
                return f"{match[1]}_transformer.layers.{match[2]}.{re.sub(moshi, theirs, match[3])}"
    if match := re.fullmatch(r"quantizer\.(rvq_first|rvq_rest)\.(input_proj|output_proj)\.weight", name):
        return f"quantizer.{_QUANTIZERS[match[1]]}.{match[2]}.weight"
    buffers = "|".join(_CODEBOOK)
    if match := re.fullmatch(rf"quantizer\.(rvq_first|rvq_rest)\.vq\.layers\.(\d+)\._codebook\.({buffers})", name):
        return f"quantizer.{_QUANTIZERS[match[1]]}.layers.{match[2]}.codebook.{_CODEBOOK[match[3]]}"
    if match := re.fullmatch(r"(downsample|upsample)\.conv(tr)?\.conv(tr)?\.conv(tr)?\.weight", name):
        return f"{match[1]}.conv.weight"
    raise ValueError(f"Mimi weights: unexpected tensor {name}; expected the published Mimi file of moshi")


def _moshi_name(name: str) -> str:
    """Hugging Face's name -> moshi's, the separate projections aside."""
    if match := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(block\.\d+\.)?conv\.(weight|bias)", name):
        transposed = match[1] == "decoder" and match[3] is None and match[2] in TRANSPOSED
        kind = "convtr" if transposed else "conv"
        return f"{match[1]}.model.{match[2]}.{match[3] or ''}{kind}.{kind}.{match[4]}"
    if match := re.fullmatch(r"(encoder|decoder)_transformer\.layers\.(\d+)\.(.+)", name):
        for moshi, theirs in _TRANSFORMER:
            for value in ("weight", "bias"):
                if match[3] == theirs.replace(r"\1", value):
                    suffix = moshi.replace("(weight|bias)", value).replace("\\", "")
                    return f"{match[1]}_transformer.transformer.layers.{match[2]}.{suffix}"
    if match := re.fullmatch(r"quantizer\.(\w+)\.(input_proj|output_proj)\.weight", name):
        return f"quantizer.{_inverse(_QUANTIZERS, match[1], name)}.{match[2]}.weight"
    if match := re.fullmatch(r"quantizer\.(\w+)\.layers\.(\d+)\.codebook\.(\w+)", name):
        part = _inverse(_CODEBOOK, match[3], name)
        return f"quantizer.{_inverse(_QUANTIZERS, match[1], name)}.vq.layers.{match[2]}._codebook.{part}"
    if name in ("downsample.conv.weight", "upsample.conv.weight"):
        kind = "conv" if name.startswith("down") else "convtr"
        return f"{name.split('.')[0]}.{kind}.{kind}.{kind}.weight"
    raise ValueError(f"Mimi weights: unexpected tensor codec_model.{name}; expected transformers' Mimi")


def _inverse(mapping: dict[str, str], value: str, name: str) -> str:
    for key, entry in mapping.items():
        if entry == value:
            return key
    raise ValueError(f"Mimi weights: unexpected tensor codec_model.{name}; expected transformers' Mimi")
