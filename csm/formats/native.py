"""The native model directory: all that is needed to speak, in one folder.

config.json          format version, model shape, codec, facts about the training run
model.safetensors    weights under the names of csm/model/csm.py
tokenizer/           written by csm.text.TextTokenizer.save
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
from csm.config import CodecConfig, CodeLayout, CSMConfig
from csm.formats.tensors import Weights, write_safetensors
from csm.text import TextTokenizer

FORMAT_VERSION = 1
CODEC_FILE = "codec.safetensors"
TOKENIZER_FOLDER = "tokenizer"
_STORED_NAMES = {"max_seq_len": "max_positions"}  # CSMConfig's name -> format 1's, in config.json


def write_native(
    folder: Path,
    weights: Weights,
    config: CSMConfig,
    codec: CodecConfig,
    codec_info: CodecInfo,
    fitted_codec: SpectralCodec | None,
    tokenizer: TextTokenizer,
    training: dict[str, Any],
    quantization: dict[str, Any] | None = None,
) -> None:
    """Writes a model directory's files into `folder`.

    fitted_codec: written as codec.safetensors; None for Mimi, which is on the hub
    training:     facts about the run (step, datasets, seed), plain values for config.json
    quantization: how `weights` are quantized (csm/formats/quantized.py), plain values; None if they are not
    """
    content = {
        "format_version": FORMAT_VERSION,
        "model": {_STORED_NAMES.get(name, name): value for name, value in plain_values(config).items()},
        "codec": {"info": codec_info.to_dict(), "kind": codec.kind.name, "repo": codec.repo},
        "training": training,
    }
    if quantization is not None:
        content["quantization"] = quantization
    write_safetensors(weights, folder / "model.safetensors")
    tokenizer.save(folder / TOKENIZER_FOLDER)
    if fitted_codec is not None:
        fitted_codec.save(folder / CODEC_FILE)
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
        return model_config(values)
    except (OmegaConfBaseException, KeyError) as error:
        raise ValueError(f"{path / 'config.json'}: not a model configuration ({error}); export it again") from None


def plain_values(config: CSMConfig) -> dict[str, Any]:
    """The inverse of `model_config`. `layout` is left out where it is CSM's own: earlier versions do not know it."""
    values = asdict(config)
    layout = values.pop("layout")
    return values if layout is CodeLayout.depth else values | {"layout": layout.value}


def model_config(values: dict[str, Any]) -> CSMConfig:
    """A CSMConfig from nested plain values. Raises OmegaConfBaseException for an unknown name or a wrong type."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CSMConfig), values))
    assert isinstance(config, CSMConfig)
    return config
