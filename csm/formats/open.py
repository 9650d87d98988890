"""Opens a checkpoint of any layout: native, Sesame's, Hugging Face's, or a training checkpoint; a path or a hub id.

A directory is recognized by its config.json and the names of its tensors (csm/formats/recognize.py), a training
checkpoint by what train.py puts into it. The published csm-1b directory holds Sesame's layout and Hugging Face's;
Sesame's single file is then read, being the smaller.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from csm.checkpoint.contents import EXTRAS, is_training_folder, read_parts
from csm.config import CodecKind
from csm.formats.hub import fetch
from csm.formats.layouts import Checkpoint, HFCheckpoint, NativeCheckpoint, SesameCheckpoint, TrainingCheckpoint
from csm.formats.quantized import QuantizedCheckpoint
from csm.formats.recognize import layout_of, read_json, weights_file
from csm.formats.tensors import Weights, lazy, load_pickled, open_safetensors


def open_checkpoint(
    path_or_repo: str | Path,
    codec_path: str | None = None,
    tokenizer_path: str | None = None,
    averaged: bool = False,
) -> Checkpoint:
    """Recognizes and opens a checkpoint: a directory, one of its weight files, a training checkpoint, or a hub id.

    codec_path:     local Mimi weights in moshi's format, instead of the checkpoint's own or the hub's
    tokenizer_path: tokenizer directory, file or hub id, for a checkpoint in Sesame's layout, which may carry none
    averaged:       of a training checkpoint, the moving averages of its weights (trainer.ema_decay)

    Raises FileNotFoundError if it is neither there nor to be had from the hub, and ValueError, naming file and tensor,
    if it is damaged, contradicts itself or is something else.
    """
    path = fetch(path_or_repo)
    checkpoint = _open(path, tokenizer_path, averaged)
    if averaged and not isinstance(checkpoint, TrainingCheckpoint):
        raise ValueError(f"{path} is not a training checkpoint: it holds one set of weights; omit --ema")
    if codec_path is None:
        return checkpoint
    if checkpoint.codec.kind is not CodecKind.mimi:
        raise ValueError(f"{path} carries its own codec ({checkpoint.codec.kind.name}); omit --codec")
    return replace(checkpoint, codec=replace(checkpoint.codec, path=codec_path))


def _open(path: Path, tokenizer_path: str | None, averaged: bool) -> Checkpoint:
    if is_training_folder(path):
        return TrainingCheckpoint.open(path, *read_parts(path), averaged)
    if path.is_file():
        file, config = path, read_json(path.with_name("config.json"))
    else:
        config = read_json(path / "config.json")
        file = path / _directory_weights(path, config)
    if file.suffix in (".safetensors", ".json"):
        weights = open_safetensors(file)
    else:
        content = load_pickled(file)
        if EXTRAS in content:
            return TrainingCheckpoint.open(file, *read_parts(file), averaged)
        weights = _pickled_weights(file, content)
    layout = layout_of(weights, config)
    if layout == "native":
        kind = QuantizedCheckpoint if "quantization" in config else NativeCheckpoint
        return kind.open(file.parent, weights, file)
    if layout == "hf":
        return HFCheckpoint.open(weights, file, config)
    if layout == "sesame":
        return SesameCheckpoint.open(weights, file, config, tokenizer_path)
    raise ValueError(f"{file} is not a CSM: its tensors are named neither as ours nor as Sesame's or transformers'")


def _directory_weights(path: Path, config: dict[str, Any]) -> str:
    """The file in directory `path` that holds, or lists, its weights."""
    found = weights_file([file.name for file in path.iterdir()], config)
    if found is None:
        raise FileNotFoundError(
            f"{path} is not a model directory: it has no weights (model.safetensors); expected an export of "
            "`csm export`, Sesame's layout (model.safetensors or ckpt.pt), or transformers' CsmForConditionalGeneration"
        )
    return found


def _pickled_weights(file: Path, content: dict[str, Any]) -> Weights:
    """The weights in a pickled file, which may keep them next to other things and under a wrapped model's names."""
    for key in ("state_dict", "model_state_dict", "model_state", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    content = {name.removeprefix("_orig_mod.").removeprefix("module."): value for name, value in content.items()}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"checkpoint {file} is not a dictionary of tensors as Sesame's ckpt.pt is: {name!r} is a "
                f"{type(value).__name__}"
            )
        if value.is_meta:
            raise ValueError(f"checkpoint {file}: tensor {name} has no values (it was saved from the meta device)")
    return lazy(content)
