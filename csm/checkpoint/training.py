"""Training checkpoints (Lightning .ckpt files): what they carry besides weights, and how they become a model directory.

Under the key "csm" of every checkpoint:

    config      the resolved TrainConfig as plain values
    codec       CodecInfo of the codes the model was trained on
    files       {relative path: uint8 tensor}: the tokenizer folder and, if fitted, the codec: a checkpoint is
                complete without the dataset and the folder it was trained in
"""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from omegaconf import OmegaConf

from csm.checkpoint.native import check_weights, save_native
from csm.codec import CodecInfo
from csm.config import TrainConfig
from csm.model.csm import CSM
from csm.text import TextTokenizer

PREFIX = "model."  # of the model's tensors in the LightningModule


def checkpoint_extras(
    config: TrainConfig, codec: CodecInfo, codec_file: Path | None, tokenizer: TextTokenizer
) -> dict[str, Any]:
    """What the module's docstring describes, as plain values and tensors (loads with weights_only=True)."""
    files: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                files[f"tokenizer/{file.relative_to(folder).as_posix()}"] = _read_bytes(file)
    if codec_file is not None:
        files["codec.safetensors"] = _read_bytes(codec_file)
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return {"config": plain, "codec": codec.to_dict(), "files": files}


def _read_bytes(file: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a training checkpoint on the CPU, without unpickling objects.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing, damaged or not one of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, BadZipFile, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {path} is damaged or not a training checkpoint ({reason})") from None
    if "csm" not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"checkpoint {path} was not written by this project's train.py")
    return checkpoint


def config_of(checkpoint: dict[str, Any]) -> TrainConfig:
    """The configuration a checkpoint was trained with."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), checkpoint["csm"]["config"]))


def export_checkpoint(path: Path, output: Path, dtype: torch.dtype | None = None, overwrite: bool = False) -> None:
    """Turns a training checkpoint into a native model directory at `output`.

    dtype: of the exported weights; None keeps fp32. Raises what `read_training_checkpoint` and `save_native` raise.
    """
    checkpoint = read_training_checkpoint(path)
    config, extras = config_of(checkpoint), checkpoint["csm"]
    weights = {
        name.removeprefix(PREFIX): tensor if dtype is None else tensor.to(dtype)
        for name, tensor in checkpoint["state_dict"].items()
    }
    with torch.device("meta"):
        check_weights(CSM(config.model), weights, str(path))
    with tempfile.TemporaryDirectory() as folder:
        for name, content in extras["files"].items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.numpy().tobytes())
        codec_file = Path(folder) / "codec.safetensors"
        save_native(
            path=output,
            weights=weights,
            model=config.model,
            codec_info=CodecInfo.from_dict(extras["codec"]),
            codec=config.codec,
            codec_file=codec_file if codec_file.exists() else None,
            tokenizer_dir=Path(folder) / "tokenizer",
            training={
                "step": checkpoint["global_step"],
                "name": config.name,
                "seed": config.seed,
                "data": config.data.path,
                "max_positions": config.data.max_positions,
            },
            overwrite=overwrite,
        )
