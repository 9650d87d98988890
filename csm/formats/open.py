"""Opens a checkpoint of any layout: native, Sesame's, Hugging Face's, or a training checkpoint; a path or a hub id.

`open_checkpoint` reads configurations and names only; weights, codec and tokenizer come when they are asked for.

    layout      recognized by
    native      config.json with format_version                        csm/formats/native.py
    hf          config.json with model_type csm                        csm/formats/hf.py
    sesame      config.json with backbone_flavor, or a lone ckpt.pt    csm/formats/sesame.py
    training    a .ckpt of train.py: a file, or a folder of shards     csm/checkpoint/contents.py

The published csm-1b directory is both hf and sesame; Sesame's single file is then read, being the smaller.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from csm.checkpoint.contents import EXTRAS, config_of, is_training_folder, model_weights, read_parts, stored_files
from csm.codec import Codec, CodecInfo, check_same_codec, load_codec
from csm.config import CodecConfig, CodecKind, CSMConfig, LoraConfig, TokenizerConfig
from csm.formats import hf, native, sesame
from csm.formats import weight_names as names
from csm.formats.hub import fetch
from csm.formats.mimi import hf_to_moshi
from csm.formats.tensors import Weights, check_tensors, lazy, load_pickled, open_safetensors
from csm.model.csm import CSM
from csm.text import TOKENIZER_FILE, TextTokenizer, load_saved_tokenizer, load_tokenizer

DEFAULT_TOKENIZER = "unsloth/Llama-3.2-1B"
"""Where a directory in Sesame's layout carries no tokenizer: an ungated copy of the one Sesame's generator loads."""
HF_CODEC_PREFIX = "codec_model."


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    weights: under our names; codec_info: None where the layout does not record which codec the model was trained with;
    read_codec(device) and read_tokenizer() load what belongs to the model; training: what is known about its origin;
    adapters, lora, base_model: of a LoRA training checkpoint, whose `weights` have the adapters merged in.
    """

    layout: str
    where: str
    config: CSMConfig
    weights: Weights
    codec: CodecConfig
    codec_info: CodecInfo | None
    read_codec: Callable[[str], Codec]
    read_tokenizer: Callable[[], TextTokenizer]
    training: dict[str, Any]
    adapters: Weights = field(default_factory=dict)
    lora: LoraConfig = field(default_factory=LoraConfig)
    base_model: str = ""

    def load_model(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CSM:
        """The model on `device`; dtype None keeps the stored one. One tensor at a time is converted and moved."""
        with torch.device("meta"):
            model = CSM(self.config)
        tensors = {name: tensor.read().to(device=device, dtype=dtype) for name, tensor in self.weights.items()}
        model.load_state_dict(tensors, assign=True)
        return model


def open_checkpoint(
    path_or_repo: str | Path,
    codec_path: str | None = None,
    tokenizer_path: str | None = None,
    averaged: bool = False,
) -> Checkpoint:
    """Recognizes and opens a checkpoint.

    codec_path:     local Mimi weights in moshi's format, instead of the checkpoint's own or the hub's
    tokenizer_path: tokenizer directory, file or hub id, for a checkpoint in Sesame's layout, which may carry none
    averaged:       of a training checkpoint, the moving averages of its weights (trainer.ema_decay)
    Raises FileNotFoundError if it is neither there nor to be had from the hub, and ValueError, naming file and tensor,
    if it is damaged, contradicts itself or is something else.
    """
    path = fetch(path_or_repo)
    checkpoint = _open(path, codec_path, tokenizer_path, averaged)
    if averaged and checkpoint.layout != "training":
        raise ValueError(f"{path} is no training checkpoint: it holds one set of weights; leave out --ema")
    return checkpoint


def _open(path: Path, codec_path: str | None, tokenizer_path: str | None, averaged: bool) -> Checkpoint:
    if path.is_file():
        content = load_pickled(path) if path.suffix != ".safetensors" else None
        if content is not None and EXTRAS in content:
            return _with_codec(_open_training(path, *read_parts(path), averaged), codec_path)
        weights = open_safetensors(path) if content is None else _pickled_weights(path, content)
        config = read_json(path.with_name("config.json"))
        return _open_sesame(path, weights, config, codec_path, tokenizer_path)
    if is_training_folder(path):
        return _with_codec(_open_training(path, *read_parts(path), averaged), codec_path)
    config = read_json(path / "config.json")
    if "format_version" in config:
        return _with_codec(_open_native(path), codec_path)
    if "backbone_flavor" in config:
        single, pickled = path / "model.safetensors", path / "ckpt.pt"
        if single.is_file():
            return _open_sesame(single, open_safetensors(single), config, codec_path, tokenizer_path)
        if pickled.is_file():
            weights = _pickled_weights(pickled, load_pickled(pickled))
            return _open_sesame(pickled, weights, config, codec_path, tokenizer_path)
    if config.get("model_type") == "csm":
        return _open_hf(path, config, codec_path)
    lacking = "no config.json" if not config else "a config.json of another kind of model"
    raise FileNotFoundError(
        f"{path} is not a model directory: it has {lacking}; expected an export of `csm export`, Sesame's layout "
        "(model.safetensors or ckpt.pt), or transformers' CsmForConditionalGeneration"
    )


# ------------------------------------------------------------------------------------------------- layouts


def _open_native(path: Path) -> Checkpoint:
    config, entry = native.read_model_config(path), native.read_config(path)
    info = CodecInfo.from_dict(entry["codec"]["info"])
    file = path / "model.safetensors"
    weights = open_safetensors(file)
    check_tensors(weights, names.shapes(config), str(file))
    own = path / "codec.safetensors"
    codec = CodecConfig(
        kind=CodecKind[entry["codec"]["kind"]],
        path=str(own) if own.is_file() else None,
        repo=entry["codec"]["repo"],
        num_codebooks=info.num_codebooks,
        codebook_size=info.codebook_size,
    )
    return Checkpoint(
        layout="native",
        where=str(path),
        config=config,
        weights=weights,
        codec=codec,
        codec_info=info,
        read_codec=lambda device: _load_codec(codec, info, path, device),
        read_tokenizer=lambda: _checked(load_saved_tokenizer(path / "tokenizer"), config, path),
        training=entry.get("training", {}),
    )


def _open_training(path: Path, content: dict[str, Any], tensors: Weights, averaged: bool) -> Checkpoint:
    config, info = config_of(content), CodecInfo.from_dict(content[EXTRAS]["codec"])
    if averaged and not config.trainer.ema_decay:
        raise ValueError(f"{path} has no averaged weights: it was trained with trainer.ema_decay=0; leave out --ema")
    weights, adapters = model_weights(content, tensors, averaged)
    check_tensors(weights, names.shapes(config.model), str(path))

    def read_codec(device: str) -> Codec:
        with stored_files(content) as folder:
            own = folder / "codec.safetensors"
            entry = replace(config.codec, path=str(own)) if own.is_file() else config.codec
            return _load_codec(entry, info, path, device)

    def read_tokenizer() -> TextTokenizer:
        with stored_files(content) as folder:
            return _checked(load_saved_tokenizer(folder / "tokenizer"), config.model, path)

    return Checkpoint(
        layout="training",
        where=str(path),
        config=config.model,
        weights=weights,
        codec=config.codec,
        codec_info=info,
        read_codec=read_codec,
        read_tokenizer=read_tokenizer,
        adapters=adapters,
        lora=config.lora,
        base_model=config.init_from or "",
        training={
            "step": content["global_step"],
            "name": config.name,
            "seed": config.seed,
            "data": config.data.path or ", ".join(source.path for source in config.data.sources.values()),
            "max_seq_len": config.data.max_seq_len,
            "ema_decay": config.trainer.ema_decay if averaged else 0.0,
        },
    )


def _open_sesame(
    file: Path, weights: Weights, content: dict[str, Any], codec_path: str | None, tokenizer_path: str | None
) -> Checkpoint:
    path = file.parent
    if "backbone_flavor" in content:
        config = sesame.read_config(content, str(path / "config.json"))
    else:
        config = sesame.config_from_weights(weights, str(file))
    codec = _mimi(config, codec_path)
    tokenizer = TokenizerConfig(path=tokenizer_path or DEFAULT_TOKENIZER, vocab_size=config.text_vocab_size)
    if tokenizer_path is None and (path / TOKENIZER_FILE).is_file():
        tokenizer.path = str(path)
    return Checkpoint(
        layout="sesame",
        where=str(path),
        config=config,
        weights=names.from_sesame(weights, config, str(file)),
        codec=codec,
        codec_info=None,
        read_codec=lambda device: load_codec(replace(codec, device=device)),
        read_tokenizer=lambda: load_tokenizer(tokenizer),
        training=content.get("training", {}),
    )


def _open_hf(path: Path, content: dict[str, Any], codec_path: str | None) -> Checkpoint:
    config = hf.read_config(content, str(path / "config.json"))
    candidates = (content.get("transformers_weights"), "model.safetensors.index.json", "model.safetensors")
    files = [path / name for name in candidates if name is not None]
    file = next((file for file in files if file.is_file()), files[-1])
    stored = open_safetensors(file)
    codec_weights = {
        name.removeprefix(HF_CODEC_PREFIX): tensor
        for name, tensor in stored.items()
        if name.startswith(HF_CODEC_PREFIX)
    }
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith(HF_CODEC_PREFIX)}
    codec = _mimi(config, codec_path)

    def read_codec(device: str) -> Codec:
        if codec_path is not None or not codec_weights:
            return load_codec(replace(codec, device=device))
        from csm.codec.mimi import MimiCodec  # moshi is slow to import

        tensors = {name: tensor.read() for name, tensor in codec_weights.items()}
        return MimiCodec.from_state_dict(hf_to_moshi(tensors), config.num_codebooks, device)

    return Checkpoint(
        layout="hf",
        where=str(path),
        config=config,
        weights=names.from_hf(weights, config, str(file)),
        codec=codec,
        codec_info=None,
        read_codec=read_codec,
        read_tokenizer=lambda: _checked(load_saved_tokenizer(path), config, path),
        training=content.get("training", {}),
    )


# ------------------------------------------------------------------------------------------------- helpers


def _with_codec(checkpoint: Checkpoint, codec_path: str | None) -> Checkpoint:
    """The checkpoint with Mimi's weights from a local file."""
    if codec_path is None:
        return checkpoint
    if checkpoint.codec.kind is not CodecKind.mimi:
        raise ValueError(f"{checkpoint.where} carries its own codec ({checkpoint.codec.kind.name}); give it no other")
    codec, info = replace(checkpoint.codec, path=codec_path), checkpoint.codec_info
    return replace(
        checkpoint,
        codec=codec,
        read_codec=lambda device: _load_codec(codec, info, Path(checkpoint.where), device),
    )


def _mimi(config: CSMConfig, codec_path: str | None) -> CodecConfig:
    return CodecConfig(
        kind=CodecKind.mimi,
        path=codec_path,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
    )


def _load_codec(config: CodecConfig, info: CodecInfo, path: Path, device: str) -> Codec:
    codec = load_codec(replace(config, device=device))
    check_same_codec(info, codec.info, f"model {path} and codec {config.path or config.repo}")
    return codec


def _checked(tokenizer: TextTokenizer, config: CSMConfig, path: Path) -> TextTokenizer:
    if tokenizer.vocab_size > config.text_vocab_size:
        raise ValueError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} ids, the model's text vocabulary "
            f"{config.text_vocab_size}; put the tokenizer there that the model was trained with"
        )
    return tokenizer


def _pickled_weights(file: Path, content: dict[str, Any]) -> Weights:
    content = content.get("state_dict", content)
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"checkpoint {file} is not a dictionary of tensors as Sesame's ckpt.pt is")
    return lazy(content)


def read_json(file: Path) -> dict[str, Any]:
    """A model's config.json; empty if there is none. Raises ValueError naming the file if it is no JSON object."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy or export the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a model's configuration; copy or export the model again")
    return content
