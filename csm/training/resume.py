"""Which checkpoint a run continues from, and whether it may."""

from __future__ import annotations

import logging
from pathlib import Path

from csm.checkpoint.names import shapes
from csm.checkpoint.tensors import check_tensors
from csm.checkpoint.training import config_of, model_weights, read_parts
from csm.checkpoint.zero import is_zero
from csm.config import TrainConfig
from csm.training.strategies import DEEPSPEED

log = logging.getLogger(__name__)


def find_checkpoint(config: TrainConfig) -> str | None:
    """The checkpoint to resume from, checked before anything is built.

    Raises FileNotFoundError or ValueError if it is missing or damaged, or has another shape than the model configured.
    """
    if config.ckpt_path is None:
        return None
    path = Path(config.ckpt_path)
    if config.ckpt_path == "last":
        path = Path(config.run_dir) / "checkpoints" / "last.ckpt"
        if not path.exists():
            log.info("no checkpoint in %s yet: starting from the beginning", path.parent)
            return None
    if path.exists() and is_zero(path) != (config.strategy.name in DEEPSPEED):
        raise ValueError(
            f"{path}: only DeepSpeed continues a checkpoint of DeepSpeed, and no other, so not "
            f"strategy={config.strategy.name.value}; resume with the strategy that wrote it, or start a new run_dir "
            "from its weights with init_from"
        )
    checkpoint, tensors = read_parts(path)
    weights, _ = model_weights(checkpoint, tensors)
    check_tensors(weights, shapes(config.model), str(path))
    if config_of(checkpoint).lora != config.lora:
        raise ValueError(
            f"{path} was trained with other lora options ({config_of(checkpoint).lora}); resume with the same"
        )
    decay = config_of(checkpoint).trainer.ema_decay
    if bool(decay) != bool(config.trainer.ema_decay):
        raise ValueError(
            f"{path} was trained with trainer.ema_decay={decay}; averages are neither begun nor given up midway: "
            "resume with it, or start from the weights with init_from"
        )
    return str(path)
