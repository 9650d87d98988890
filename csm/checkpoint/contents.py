"""Training checkpoints (Lightning .ckpt files, or folders of that name where weights are sharded): what they carry
besides weights.

Under the key "csm" of every checkpoint:

    config      the resolved TrainConfig as plain values
    codec       CodecInfo of the codes the model was trained on
    datasets    {name of the source: fingerprint of its samples}
    tokenizer   TextTokenizer.identity
    order       version of the order of the data, see csm/data/plan.py; 1 if missing
    code        version and commit of this project
    files       {relative path: uint8 tensor}: the tokenizer folder and, if fitted, the codec: a checkpoint is
                complete without the dataset and the folder it was trained in
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor

from csm.checkpoint.sharded import is_sharded, read_sharded
from csm.checkpoint.zero import is_zero, read_zero
from csm.codec import CodecInfo
from csm.config import REMOVED_OPTIONS, RENAMED_OPTIONS, LoraConfig, TrainConfig
from csm.data.plan import ORDER
from csm.formats.tensors import LazyTensor, Weights, lazy, load_pickled
from csm.model.lora import merged
from csm.provenance import code_version
from csm.text import TextTokenizer

EXTRAS = "csm"  # the key of what this module adds to a checkpoint
PREFIX = "model."  # of the model's tensors in the LightningModule
AVERAGE_PREFIX = "ema."  # of the averages of the trained ones, with trainer.ema_decay


def checkpoint_extras(
    config: TrainConfig, datasets: dict[str, str], codec: CodecInfo, codec_file: Path | None, tokenizer: TextTokenizer
) -> dict[str, Any]:
    """The entry that the module's docstring describes, as plain values and tensors (loads with weights_only=True)."""
    files: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                files[f"tokenizer/{file.relative_to(folder).as_posix()}"] = _read_bytes(file)
    if codec_file is not None:
        files["codec.safetensors"] = _read_bytes(codec_file)
    return {
        "config": plain_config(config),
        "codec": codec.to_dict(),
        "datasets": datasets,
        "tokenizer": tokenizer.identity,
        "order": ORDER,
        "code": code_version(),
        "files": files,
    }


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """The resolved configuration as nested dictionaries of plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True))


def _read_bytes(file: Path) -> Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a training checkpoint on the CPU, memory-mapped, without unpickling objects.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing, damaged or not one of ours.
    """
    checkpoint = load_pickled(path)
    if EXTRAS not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"checkpoint {path} was not written by this project's train.py")
    return checkpoint


def is_training_folder(path: Path) -> bool:
    return is_sharded(path) or is_zero(path)


def read_parts(path: Path) -> tuple[dict[str, Any], Weights]:
    """(a training checkpoint without its tensors, the LightningModule's tensors), of a file or of a folder, FSDP's or
    DeepSpeed's. Raises as `read_training_checkpoint`."""
    if is_training_folder(path):
        content, tensors = read_zero(path) if is_zero(path) else read_sharded(path)
        if EXTRAS not in content:
            raise ValueError(f"checkpoint {path} was not written by this project's train.py")
        return content, tensors
    content = read_training_checkpoint(path)
    return content, lazy(content["state_dict"])


def config_of(checkpoint: dict[str, Any]) -> TrainConfig:
    """The configuration a checkpoint was trained with."""
    stored = checkpoint[EXTRAS]["config"]
    for old, new in RENAMED_OPTIONS.items():
        (group, old_name), (_, new_name) = old.split("."), new.split(".")
        if old_name in stored[group]:
            values = {name: value for name, value in stored[group].items() if name != old_name}
            stored = stored | {group: values | {new_name: stored[group][old_name]}}
    for option in REMOVED_OPTIONS:
        group, removed = option.split(".")
        stored = stored | {group: {name: value for name, value in stored[group].items() if name != removed}}
    return cast(TrainConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), stored)))


def model_weights(checkpoint: dict[str, Any], tensors: Weights, averaged: bool = False) -> tuple[Weights, Weights]:
    """(weights under the names of csm/model/csm.py with LoRA adapters merged in, the adapters alone, if any), from the
    tensors of the LightningModule.

    averaged: the exponential moving averages in the place of the weights, of frozen weights themselves.
    """
    lora = config_of(checkpoint).lora
    stored = _without_prefix(tensors, PREFIX)
    if averaged:
        stored |= _without_prefix(tensors, AVERAGE_PREFIX)
    adapters = {name: tensor for name, tensor in stored.items() if name.endswith((".lora_a", ".lora_b"))}
    weights = {name: tensor for name, tensor in stored.items() if name not in adapters}
    for name in adapters:
        if name.endswith(".lora_a"):
            layer = name.removesuffix("lora_a")
            a, b = adapters[name], adapters[f"{layer}lora_b"]
            weights[f"{layer}weight"] = weights[f"{layer}weight"].map(partial(_merge, a=a, b=b, lora=lora))
    return weights, adapters


def _merge(weight: Tensor, a: LazyTensor, b: LazyTensor, lora: LoraConfig) -> Tensor:
    return merged(weight, a.read(), b.read(), lora)


def _without_prefix(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def stored_files(checkpoint: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder with the tokenizer/ and, if fitted, the codec.safetensors that the checkpoint carries."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in checkpoint[EXTRAS]["files"].items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.numpy().tobytes())
        yield Path(folder)
