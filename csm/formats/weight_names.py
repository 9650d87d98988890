"""Names of the weights in three layouts: ours, Sesame's, and Hugging Face transformers'.

All three hold the same tensors in the same shapes. Two things differ besides the names:

- Sesame's query and key projections are in the order of interleaved rotary positions (element 2i pairs with 2i+1,
  torchtune), ours and Hugging Face's in the half-split order (i pairs with i + E/2): their rows are permuted.
- Hugging Face stores the audio embedding twice, once for each stack that reads it.

Sources: SesameAILabs/csm models.py (torchtune names), transformers models/csm, and the published index of csm-1b.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from csm.config import CSMConfig, TransformerConfig
from csm.formats.tensors import LazyTensor, Weights, check_tensors
from csm.model.single_stack import build_model

# ours -> (Sesame's, Hugging Face's), inside a layer
LAYER = {
    "attn_norm.weight": ("sa_norm.scale", "input_layernorm.weight"),
    "attn.q_proj.weight": ("attn.q_proj.weight", "self_attn.q_proj.weight"),
    "attn.k_proj.weight": ("attn.k_proj.weight", "self_attn.k_proj.weight"),
    "attn.v_proj.weight": ("attn.v_proj.weight", "self_attn.v_proj.weight"),
    "attn.o_proj.weight": ("attn.output_proj.weight", "self_attn.o_proj.weight"),
    "mlp_norm.weight": ("mlp_norm.scale", "post_attention_layernorm.weight"),
    "mlp.gate_proj.weight": ("mlp.w1.weight", "mlp.gate_proj.weight"),
    "mlp.down_proj.weight": ("mlp.w2.weight", "mlp.down_proj.weight"),
    "mlp.up_proj.weight": ("mlp.w3.weight", "mlp.up_proj.weight"),
}
HF_STACKS = {"backbone": "backbone_model", "decoder": "depth_decoder.model"}
HF_OTHERS = {
    "text_embeddings.weight": "embed_text_tokens.weight",
    "audio_embeddings.weight": "backbone_model.embed_tokens.embed_audio_tokens.weight",
    "codebook0_head.weight": "lm_head.weight",
    "projection.weight": "depth_decoder.model.inputs_embeds_projector.weight",
    "audio_head": "depth_decoder.codebooks_head.weight",
}
HF_TIED = "depth_decoder.model.embed_tokens.weight"
"""Hugging Face's second copy of the audio embedding. transformers 4.57 needs it in the file: with the backbone's
copy alone it leaves the tied tensor without values and reports nothing missing."""
SESAME_BUFFERS = ("backbone_causal_mask", "decoder_causal_mask")
"""In files that were saved after Sesame's `setup_caches()`; not weights."""


def shapes(config: CSMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's weights."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}


def sesame_name(name: str) -> str:
    """Our name -> Sesame's."""
    parts = name.split(".")
    if len(parts) > 2 and parts[1] == "layers":
        return ".".join([*parts[:3], LAYER[".".join(parts[3:])][0]])
    return name.replace("norm.weight", "norm.scale")


def hf_name(name: str) -> str:
    """Our name -> Hugging Face's."""
    parts = name.split(".")
    if name in HF_OTHERS:
        return HF_OTHERS[name]
    if parts[1] == "layers":
        return ".".join([HF_STACKS[parts[0]], *parts[1:3], LAYER[".".join(parts[3:])][1]])
    return f"{HF_STACKS[parts[0]]}.{'.'.join(parts[1:])}"


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection `[heads * E, D]`: half-split rotary order -> interleaved."""
    out, width = weight.shape
    return weight.view(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width)


def split_halves(weight: Tensor, heads: int) -> Tensor:
    """Inverse of `interleave`."""
    out, width = weight.shape
    return weight.view(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def to_sesame(weights: Weights, config: CSMConfig) -> Weights:
    """Our weights in Sesame's layout."""
    converted: Weights = {}
    for name, tensor in weights.items():
        heads = _rotary_heads(name, config)
        converted[sesame_name(name)] = tensor if heads is None else _permuted(tensor, interleave, heads)
    return converted


def from_sesame(weights: Weights, config: CSMConfig, where: str) -> Weights:
    """Sesame's weights in our layout. Raises ValueError naming the first missing, unexpected or misshapen tensor."""
    weights = {name: tensor for name, tensor in weights.items() if name not in SESAME_BUFFERS}
    expected = shapes(config)
    check_tensors(weights, {sesame_name(name): shape for name, shape in expected.items()}, where)
    converted: Weights = {}
    for name in expected:
        tensor, heads = weights[sesame_name(name)], _rotary_heads(name, config)
        converted[name] = tensor if heads is None else _permuted(tensor, split_halves, heads)
    return converted


def to_hf(weights: Weights) -> Weights:
    """Our weights in Hugging Face's layout, without the codec."""
    converted = {hf_name(name): tensor for name, tensor in weights.items()}
    converted[HF_TIED] = weights["audio_embeddings.weight"]
    return converted


def from_hf(weights: Weights, config: CSMConfig, where: str) -> Weights:
    """Hugging Face's weights, the codec's aside, in our layout.

    The audio embedding may be stored once, under either name, or twice. Raises ValueError naming the first missing,
    unexpected or misshapen tensor, and if the two copies differ.
    """
    weights, expected = dict(weights), shapes(config)
    main = HF_OTHERS["audio_embeddings.weight"]
    if HF_TIED in weights:
        tied = weights.pop(HF_TIED)
        if main in weights and (
            tied.shape != weights[main].shape or not torch.equal(tied.read(), weights[main].read())
        ):
            raise ValueError(
                f"{where}: {main} and {HF_TIED} differ, but CSM has one audio embedding; were they trained with "
                "transformers 5.0 to 5.8, which do not tie them? 4.57 and later versions of 5 do: train again there"
            )
        weights[main] = tied
    check_tensors(weights, {hf_name(name): shape for name, shape in expected.items()}, where)
    return {name: weights[hf_name(name)] for name in expected}


def _rotary_heads(name: str, config: CSMConfig) -> int | None:
    """Number of heads of a q or k projection; None for every other tensor."""
    stack: TransformerConfig = config.backbone if name.startswith("backbone.") else config.decoder
    if name.endswith(".q_proj.weight"):
        return stack.heads
    return stack.kv_heads if name.endswith(".k_proj.weight") else None


def _permuted(tensor: LazyTensor, permute: Callable[[Tensor, int], Tensor], heads: int) -> LazyTensor:
    return tensor.map(lambda weight: permute(weight, heads))
