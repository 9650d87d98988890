"""Initialization of a backbone from a text model: the layers, final norm and token embeddings of a Llama checkpoint.

Llama-3.2-1B, Llama-3.2-3B and Llama-3.1-8B have the shapes of our 1B, 3B and 8B backbones. Everything that has to do
with audio (audio embeddings, heads, projection, depth decoder) keeps its random initialization.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from csm.formats import hf
from csm.formats.tensors import Weights, open_safetensors
from csm.formats.weight_names import LAYER
from csm.model.init import assign
from csm.model.speech_lm import SpeechLM

log = logging.getLogger(__name__)


def init_from_llama(model: SpeechLM, path: Path, content: dict[str, Any]) -> list[str]:
    """Copies what `model` shares with the Llama checkpoint in directory `path`, whose config.json holds `content`.

    Returns the names of the weights that were not copied. Raises ValueError naming the first tensor that is missing
    or of another shape, and FileNotFoundError if there are no safetensors.
    """
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    file = index if index.is_file() else single
    weights = open_safetensors(file)
    own = dict(model.named_parameters())
    sources = {"text_embeddings.weight": "model.embed_tokens.weight", "backbone.norm.weight": "model.norm.weight"}
    for number in range(len(model.backbone.layers)):
        for ours, (_, theirs) in LAYER.items():
            sources[f"backbone.layers.{number}.{ours}"] = f"model.layers.{number}.{theirs}"
    _check(own, weights, sources, content, file)
    for name, source in sources.items():
        assign(own[name], weights[source].read())
    wanted = {
        "rope": hf.read_rope(content, str(path / "config.json")),
        "norm_eps": content.get("rms_norm_eps", 1e-6),  # transformers' default for Llama
    }
    for option, value in wanted.items():
        if value != getattr(model.config, option):
            mine = getattr(model.config, option)
            log.warning("%s: its %s is %s, the model's %s: the backbone has to adapt", path, option, value, mine)
    return [name for name in own if name not in sources]


def _check(
    own: dict[str, torch.nn.Parameter], weights: Weights, sources: dict[str, str], content: dict[str, Any], file: Path
) -> None:
    layers = content.get("num_hidden_layers")
    wanted = sum(1 for name in sources if name.endswith("attn_norm.weight"))
    if layers != wanted:
        raise ValueError(f"{file}: this Llama has {layers} layers, the backbone {wanted}; choose the model that fits")
    for name, source in sources.items():
        expected = tuple(own[name].shape)
        if source not in weights:
            raise ValueError(f"{file}: tensor {source} {expected} is missing; is it a Llama checkpoint?")
        if weights[source].shape != expected:
            raise ValueError(
                f"{file}: tensor {source} has shape {weights[source].shape}, the model's {name} {expected}; set model "
                "and tokenizer.vocab_size to the checkpoint's"
            )
