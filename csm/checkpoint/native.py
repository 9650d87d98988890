"""The native model directory: everything that is needed to speak, in one folder.

config.json          format version, model shape, codec, tokenizer kind, where the weights come from
model.safetensors    weights under the names of csm/model/csm.py
tokenizer/           what csm.text.TextTokenizer.save wrote
codec.safetensors    the fitted spectral codec (a Mimi model refers to its hub repository instead)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from csm.codec import Codec, CodecInfo, check_same_codec, load_codec
from csm.config import CodecConfig, CodecKind, CSMConfig
from csm.files import atomic_directory
from csm.inference.generator import Generator
from csm.model.csm import CSM
from csm.text import TextTokenizer, load_saved_tokenizer

FORMAT_VERSION = 1


def save_native(
    path: Path,
    weights: dict[str, Tensor],
    model: CSMConfig,
    codec_info: CodecInfo,
    codec: CodecConfig,
    codec_file: Path | None,
    tokenizer_dir: Path,
    training: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes a model directory, whole or not at all.

    codec_file:    copied in as codec.safetensors; None for a codec that is found on the hub
    tokenizer_dir: copied in as tokenizer/
    training:      JSON-able facts about the run (step, dataset, seed), kept in config.json
    Raises FileExistsError if `path` exists, unless it is a model directory and `overwrite` is set.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another folder or pass --overwrite")
    if path.exists() and not (path / "config.json").is_file():
        raise FileExistsError(f"{path} is not a model directory and was left alone; choose another folder")
    codec_entry = {"info": codec_info.to_dict(), "kind": codec.kind.name, "repo": codec.repo}
    config = {
        "format_version": FORMAT_VERSION,
        "model": asdict(model),
        "codec": codec_entry,
        "training": training,
    }
    with atomic_directory(path) as folder:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        shutil.copytree(tokenizer_dir, folder / "tokenizer")
        if codec_file is not None:
            shutil.copyfile(codec_file, folder / "codec.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ValueError or FileNotFoundError, naming the file."""
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a model directory: it has no config.json; make one with `csm export`")
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); export the model again") from None
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{file}: this version of csm reads format_version {FORMAT_VERSION}")
    return config


def read_model_config(path: Path) -> CSMConfig:
    """The shape of the model in a model directory."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CSMConfig), read_config(path)["model"]))
    except (OmegaConfBaseException, KeyError) as error:
        raise ValueError(f"{path / 'config.json'}: not a model configuration ({error}); export it again") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, on the CPU. Raises ValueError naming the file if it is cut short or missing."""
    file = path / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; export the model again")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); copy or export it again") from None


def load_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CSM:
    """Loads a model directory.

    dtype: of the weights; None keeps the stored one. Raises ValueError naming the first tensor that is missing,
    unexpected or of another shape, and FileNotFoundError if there is no model directory at `path`.
    """
    path = Path(path)
    with torch.device("meta"):
        model = CSM(read_model_config(path))
    weights = read_weights(path)
    check_weights(model, weights, str(path / "model.safetensors"))
    model.load_state_dict(weights, assign=True)
    return model.to(device=device, dtype=dtype)


def check_weights(model: CSM, weights: dict[str, Tensor], where: str) -> None:
    """Raises ValueError unless `weights` has exactly the model's tensors; names the first difference."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise ValueError(f"{where}: tensor {name} {shape} is missing; is it another model's checkpoint?")
        if tuple(weights[name].shape) != shape:
            found = tuple(weights[name].shape)
            raise ValueError(f"{where}: tensor {name} has shape {found}, the model expects {shape}")
    for name in weights:
        if name not in expected:
            raise ValueError(f"{where}: unexpected tensor {name}; is it another model's checkpoint?")


def load_native_codec(path: Path, device: str = "cpu") -> Codec:
    """The codec that a model directory was trained with. Raises ValueError if it is not the one found."""
    entry = read_config(path)["codec"]
    info = CodecInfo.from_dict(entry["info"])
    own = path / "codec.safetensors"
    codec = load_codec(
        CodecConfig(
            kind=CodecKind[entry["kind"]],
            path=str(own) if own.is_file() else None,
            repo=entry["repo"],
            num_codebooks=info.num_codebooks,
            codebook_size=info.codebook_size,
            device=str(device),
        )
    )
    check_same_codec(info, codec.info, f"model {path} and codec {own if own.is_file() else entry['repo']}")
    return codec


def load_native_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer that a model directory was trained with."""
    return load_saved_tokenizer(path / "tokenizer")


def load_generator(path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Generator:
    """Model, codec and tokenizer of a model directory, ready to speak."""
    path = Path(path)
    return Generator(load_model(path, device, dtype), load_native_codec(path, device), load_native_tokenizer(path))
