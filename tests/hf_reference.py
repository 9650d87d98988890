"""transformers' CSM with the weights of one of ours, as an independent implementation to compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration

from csm.formats import hf, weight_names
from csm.formats.tensors import lazy
from csm.frames import Frames
from csm.model.csm import CSM

AUDIO_ID, AUDIO_EOS_ID = 39, 40  # text ids that only mark places; their embeddings are never read


def small_codec_config(codebooks: int, codebook_size: int) -> dict:
    """A Mimi of the least size that transformers builds; these tests decode nothing."""
    return {
        "model_type": "mimi",
        "num_quantizers": codebooks,
        "codebook_size": codebook_size,
        "hidden_size": 16,
        "upsample_groups": 16,
        "num_filters": 2,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }


def hf_model(model: CSM) -> CsmForConditionalGeneration:
    config = model.config
    content = hf.write_config(
        config,
        codec_config=small_codec_config(config.num_codebooks, 16),  # Mimi wants a power of two
        bos_token_id=1,
        pad_token_id=2,
        audio_token_id=AUDIO_ID,
        audio_eos_token_id=AUDIO_EOS_ID,
        dtype="float32",
    )
    reference = CsmForConditionalGeneration(CsmConfig(**content)).eval()
    weights = {name: tensor.read() for name, tensor in weight_names.to_hf(lazy(model.state_dict())).items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("codec_model.") for name in missing), (missing, unexpected)
    return reference


def hf_inputs(reference: CsmForConditionalGeneration, frames: Frames) -> Tensor:
    """Embeddings [1, T, D] of a conversation by transformers' own tables, text and frames told apart by the mask."""
    is_text = frames.mask[:, -1]
    embeddings = reference.backbone_model.embed_tokens(frames.tokens[None, :, :-1])[0]  # [T, D]
    embeddings = torch.where(is_text[:, None], reference.embed_text_tokens(frames.tokens[:, -1]), embeddings)
    return embeddings[None]


def hf_labels(frames: Frames, chosen: Tensor | None = None) -> Tensor:
    """Labels [1, T, K]: -100 where nothing is predicted; codebooks 1.. only of `chosen` bool [T], if given."""
    labels = torch.where(frames.targets[:, None], frames.tokens[:, :-1], -100)
    if chosen is not None:
        labels[:, 1:] = torch.where(chosen[:, None], labels[:, 1:], -100)
    return labels[None]
