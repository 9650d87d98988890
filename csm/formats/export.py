"""Export: writes a checkpoint as a model directory, in our layout, Sesame's, Hugging Face's, or the last two in one.

    native   config.json model.safetensors tokenizer/ codec.safetensors (fitted codecs)
    sesame   config.json model.safetensors, tokenizer.json and tokenizer_config.json
    hf       config.json generation_config.json model.safetensors (codec included), tokenizer, chat template,
             preprocessor
    all      sesame's and hf's files in one directory, as sesame/csm-1b is published: config.json serves both loaders
             and sends transformers to transformers.safetensors, Sesame's own weights being model.safetensors
    peft     only the LoRA adapter of a training checkpoint, for transformers' model with PEFT

A model card, README.md, is added to all but the last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from csm.codec import SpectralCodec, mimi_codec
from csm.config import CodecKind
from csm.files import atomic_directory
from csm.formats import hf, sesame, weight_names
from csm.formats.card import model_card
from csm.formats.hf_processor import write_processor_files
from csm.formats.layouts import HF_CODEC_PREFIX, Checkpoint, TrainingCheckpoint
from csm.formats.mimi import HF_CODEC_CONFIG, first_codebooks, moshi_to_hf
from csm.formats.native import write_native
from csm.formats.peft import write_peft_adapter
from csm.formats.tensors import Weights, cast, lazy, write_safetensors
from csm.text import NORMALIZE_KEY, TextTokenizer

log = logging.getLogger(__name__)

LAYOUTS = ("native", "sesame", "hf", "all")
ADAPTER = "peft"


def export(
    checkpoint: Checkpoint,
    output: Path,
    layout: str = "native",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the directory, whole or not at all, one tensor at a time.

    dtype: of the model's weights, None keeps the stored one; the codec stays in float32. Raises FileExistsError if
    `output` exists, unless it is a model directory and `overwrite` is set, and ValueError for a model whose codec,
    tokenizer or `model.layout` the layout has no place for.
    """
    assert layout in (*LAYOUTS, ADAPTER), layout
    if layout != "native":
        checkpoint.check_depth(f"the format {layout!r}")
    with model_directory(output, overwrite) as folder:
        weights = cast(checkpoint.original_weights(), dtype)
        if layout == ADAPTER:
            if not isinstance(checkpoint, TrainingCheckpoint):
                raise ValueError(f"{checkpoint.path} has no LoRA adapter: only training checkpoints keep one apart")
            write_peft_adapter(folder, cast(checkpoint.adapters, dtype), checkpoint.lora, checkpoint.base_model)
            return
        if layout == "native":
            write_native_files(checkpoint, weights, folder)
        else:
            _check_mimi(checkpoint, layout)
            config = _write_foreign(checkpoint, weights, folder, layout)
            config["training"] = checkpoint.training
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(checkpoint, output.name, layout), encoding="utf-8")


@contextmanager
def model_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that becomes `path` once it is complete; never replaces anything but a model directory."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another folder or pass --overwrite")
    if path.exists() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise FileExistsError(f"{path} is not a model directory and was left alone; choose another folder")
    with atomic_directory(path) as folder:
        yield folder


def write_native_files(
    checkpoint: Checkpoint,
    weights: Weights,
    folder: Path,
    quantization: dict[str, Any] | None = None,
    tokenizer: TextTokenizer | None = None,
) -> None:
    """The native layout of a checkpoint with these weights.

    quantization: noted in config.json; tokenizer: instead of the checkpoint's own
    """
    fitted, info = None, checkpoint.codec_info
    if checkpoint.codec.kind is CodecKind.spectral or info is None:
        codec = checkpoint.read_codec()
        fitted, info = (codec if isinstance(codec, SpectralCodec) else None), codec.info
    write_native(
        folder,
        weights,
        checkpoint.config,
        checkpoint.codec,
        info,
        fitted,
        tokenizer or checkpoint.read_tokenizer(),
        checkpoint.training,
        quantization,
    )


def _write_foreign(checkpoint: Checkpoint, weights: Weights, folder: Path, layout: str) -> dict[str, Any]:
    """Writes everything but config.json; returns its contents."""
    config = checkpoint.config
    content: dict[str, Any] = {}
    tokenizer = checkpoint.read_tokenizer()
    if tokenizer.normalize is not None:
        log.warning(
            "the model reads texts normalized with %s=%s, which only this project does: give other code the text that "
            "csm.spoken_text.spoken_english returns",
            NORMALIZE_KEY,
            tokenizer.normalize,
        )
    if layout == "sesame":
        tokenizer.save(folder)
    if layout in ("sesame", "all"):
        content |= sesame.write_config(config)
        write_safetensors(weight_names.to_sesame(weights, config), folder / "model.safetensors")
    if layout in ("hf", "all"):
        ids = write_processor_files(folder, tokenizer, config.text_vocab_size)
        content |= hf.write_config(
            config,
            codec_config={**HF_CODEC_CONFIG, "num_quantizers": config.num_codebooks},
            bos_token_id=ids.bos_token_id,
            pad_token_id=ids.pad_token_id,
            audio_token_id=ids.audio_token_id,
            audio_eos_token_id=ids.audio_eos_token_id,
            dtype=str(weights["codebook0_head.weight"].dtype).removeprefix("torch."),
        )
        generation = hf.write_generation_config(config, ids.bos_token_id, ids.pad_token_id)
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        codec = checkpoint.read_codec()
        assert isinstance(codec, mimi_codec())  # `_check_mimi`
        codec_weights = lazy(first_codebooks(moshi_to_hf(codec.moshi_weights()), config.num_codebooks))
        stored = weight_names.to_hf(weights) | {HF_CODEC_PREFIX + name: t for name, t in codec_weights.items()}
        file = "transformers.safetensors" if layout == "all" else "model.safetensors"
        write_safetensors(stored, folder / file)
        if layout == "all":
            content["transformers_weights"] = file
    return content


def _check_mimi(checkpoint: Checkpoint, layout: str) -> None:
    if checkpoint.codec.kind is not CodecKind.mimi:
        raise ValueError(
            f"{checkpoint.path} speaks through the {checkpoint.codec.kind.name} codec, and the layout {layout!r} "
            "implies Mimi; export it with --format native, or train on data prepared with codec=mimi"
        )
