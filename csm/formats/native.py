"""The native model directory: everything that is needed to speak, in one folder.

config.json          format version, model shape, codec, where the weights come from
model.safetensors    weights under the names of csm/model/csm.py
tokenizer/           what csm.text.TextTokenizer.save wrote
codec.safetensors    the fitted spectral codec (a Mimi model refers to its hub repository instead)
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from csm.codec import CodecInfo, SpectralCodec
from csm.config import CodecConfig, CSMConfig
from csm.formats.tensors import Weights, write_safetensors
from csm.text import TextTokenizer

FORMAT_VERSION = 1
_STORED_NAMES = {"max_seq_len": "max_positions"}  # in config.json, where format 1 calls them otherwise


def write_native(
    folder: Path,
    weights: Weights,
    config: CSMConfig,
    codec: CodecConfig,
    codec_info: CodecInfo,
    fitted_codec: SpectralCodec | None,
    tokenizer: TextTokenizer,
    training: dict[str, Any],
) -> None:
    """Writes a model directory's files into `folder`.

    fitted_codec: kept as codec.safetensors; None for Mimi, which is found on the hub
    training:     JSON-able facts about the run (step, dataset, seed), kept in config.json
    """
    content = {
        "format_version": FORMAT_VERSION,
        "model": {_STORED_NAMES.get(name, name): value for name, value in asdict(config).items()},
        "codec": {"info": codec_info.to_dict(), "kind": codec.kind.name, "repo": codec.repo},
        "training": training,
    }
    write_safetensors(weights, folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer")
    if fitted_codec is not None:
        fitted_codec.save(folder / "codec.safetensors")
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a native model directory. Raises ValueError or FileNotFoundError, naming the file."""
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
    """The shape of the model in a native model directory."""
    try:
        stored = read_config(path)["model"]
        names = {stored_name: name for name, stored_name in _STORED_NAMES.items()}
        values = {names.get(name, name): value for name, value in stored.items()}
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CSMConfig), values))
    except (OmegaConfBaseException, KeyError) as error:
        raise ValueError(f"{path / 'config.json'}: not a model configuration ({error}); export it again") from None
