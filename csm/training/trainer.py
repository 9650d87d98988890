"""The Lightning Trainer of a configuration: strategy, precision, cadences. Epochs, samplers, accumulation and clipping
are ours."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from csm.config import TrainConfig, TrainerConfig
from csm.parallel.strategies import SHARDING, build_strategy, check_strategy
from csm.training.checkpoint_io import CheckpointWriter
from csm.training.loop import FitLoop
from csm.training.signals import without_lightning_signals

log = logging.getLogger(__name__)

PRECISIONS = ("bf16-mixed", "32-true")
"""What the optimizer step is written for: no scaling of losses, as fp16 needs it, and weights that stay fp32."""


def build_trainer(config: TrainConfig, run_dir: Path, callbacks: list[Callback], writer: CheckpointWriter) -> L.Trainer:
    """Raises ValueError for an unknown precision, or an accelerator or strategy that this machine does not have."""
    options = config.trainer
    # The place in the data is the data module's state, not the loader's.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # its advertisements
    try:
        trainer = _lightning_trainer(config, run_dir, callbacks, writer)
    except MisconfigurationException as error:  # such as a GPU asked for where there is none
        raise ValueError(f"trainer.accelerator={options.accelerator}: {error}") from None
    check_strategy(config, trainer)
    trainer.fit_loop = FitLoop(trainer)
    return without_lightning_signals(trainer)


def _lightning_trainer(
    config: TrainConfig, run_dir: Path, callbacks: list[Callback], writer: CheckpointWriter
) -> L.Trainer:
    options = config.trainer
    sharding, computation = config.strategy.name in SHARDING, precision(options)
    log.info("precision %s", computation)
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=build_strategy(config, bf16=computation == "bf16-mixed"),
        precision="32-true" if sharding else computation,
        max_steps=options.max_steps,
        max_epochs=-1,
        logger=[instantiate(entry) for entry in config.logger.values()],
        callbacks=callbacks,
        plugins=[writer],
        log_every_n_steps=options.log_every_steps,
        val_check_interval=options.val_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic=options.deterministic,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )


def precision(options: TrainerConfig) -> str:
    """One of PRECISIONS, see TrainerConfig. Raises ValueError for any other."""
    if options.precision in PRECISIONS:
        return options.precision
    if options.precision != "auto":
        raise ValueError(f"trainer.precision={options.precision} is unknown; choose {', '.join(PRECISIONS)} or auto")
    on_gpu = options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"
