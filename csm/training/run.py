"""`train(config)`: from a configuration to a trained checkpoint and an exported model directory."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from csm.checkpoint.export import export
from csm.checkpoint.init import init_weights_from
from csm.checkpoint.names import shapes
from csm.checkpoint.source import open_checkpoint
from csm.checkpoint.tensors import check_tensors
from csm.checkpoint.training import checkpoint_extras, config_of, model_weights, read_training_checkpoint
from csm.codec import check_same_codec, load_codec
from csm.config import CodecKind, TrainConfig, TrainerConfig
from csm.data.datamodule import CSMDataModule
from csm.data.dataset import ShardedDataset
from csm.model.csm import CSM
from csm.model.lora import apply_lora
from csm.text import TextTokenizer, load_tokenizer
from csm.training.callbacks import AudioSamples, StepProgressBar
from csm.training.checkpoint_io import AtomicCheckpointIO
from csm.training.module import CSMTrainingModule

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> float | None:
    """Trains until `trainer.max_steps`; resumes where `ckpt_path` left off.

    Leaves in `run_dir`: config.yaml, checkpoints/{last,best}*.ckpt, export/ (the last weights as a model directory),
    metrics as the loggers write them, samples/. Returns the best validation loss (unweighted), for sweeps; None
    without a validation split. Raises ValueError or FileNotFoundError for what a user can mend.
    """
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    ckpt_path = find_checkpoint(config)
    if config.data.demo:
        from data_prep.demo import prepare_demo  # only here does training touch data preparation

        prepare_demo(config)
    dataset = ShardedDataset(config.data.path)
    tokenizer = load_tokenizer(config.tokenizer)
    codec_file = dataset.codec_file if config.codec.kind is CodecKind.spectral else None
    extras = checkpoint_extras(config, dataset.codec, codec_file, tokenizer)
    OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")

    L.seed_everything(config.seed, workers=True, verbose=False)
    model = CSM(config.model)
    if config.init_from is not None and ckpt_path is None:  # a checkpoint to resume from holds all weights
        init_weights_from(model, config.init_from)
    if config.lora.rank:
        apply_lora(model, config.lora)
    module = CSMTrainingModule(config, model, extras)
    data = CSMDataModule(config, dataset, tokenizer)
    log.info(
        "%s: %.1fM parameters; %s: %d conversations, %.2f hours",
        config.name,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        dataset.path,
        len(dataset),
        dataset.hours,
    )

    best = ModelCheckpoint(
        run_dir / "checkpoints", filename="best-{step}", monitor="val/loss", save_top_k=1, enable_version_counter=False
    )
    latest = ModelCheckpoint(
        run_dir / "checkpoints",
        filename="last",
        every_n_train_steps=config.trainer.checkpoint_every_steps,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [latest, StepProgressBar()]
    if len(dataset.select("val")):
        callbacks.append(best)
    else:
        log.warning("%s has no split 'val': no validation, and no best checkpoint", dataset.path)
    if config.trainer.sample_every_steps:
        callbacks.append(_audio_samples(config, dataset, tokenizer, run_dir / "samples"))

    trainer = build_trainer(config, run_dir, callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    if trainer.global_step >= config.trainer.max_steps:
        last = run_dir / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(last, weights_only=False)  # the end need not be a multiple of checkpoint_every_steps
        if trainer.is_global_zero:
            export(open_checkpoint(last), run_dir / "export", overwrite=True)
    return None if best.best_model_score is None else float(best.best_model_score)


def _audio_samples(
    config: TrainConfig, dataset: ShardedDataset, tokenizer: TextTokenizer, folder: Path
) -> AudioSamples:
    codec_config = config.codec
    if codec_config.kind is CodecKind.spectral and codec_config.path is None:
        codec_config = replace(codec_config, path=str(dataset.codec_file))
    codec = load_codec(codec_config)
    check_same_codec(dataset.codec, codec.info, f"dataset {dataset.path} and codec")
    options = config.trainer
    return AudioSamples(dataset, codec, tokenizer, folder, options.sample_every_steps, options.sample_prompts)


def build_trainer(config: TrainConfig, run_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    """The Lightning Trainer of a configuration. Epochs, samplers, accumulation and clipping are ours."""
    options = config.trainer
    # Our checkpoints hold the state after the optimizer's step on purpose: resuming continues with the next one.
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # its advertisements
    try:
        return _lightning_trainer(config, run_dir, callbacks)
    except MisconfigurationException as error:  # such as a GPU asked for where there is none
        raise ValueError(f"trainer.accelerator={options.accelerator}: {error}") from None


def _lightning_trainer(config: TrainConfig, run_dir: Path, callbacks: list[Callback]) -> L.Trainer:
    options = config.trainer
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=config.strategy.name,
        precision=_precision(options),
        max_steps=options.max_steps,
        max_epochs=-1,
        logger=[instantiate(entry) for entry in config.logger.values()],
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=options.log_every_steps,
        val_check_interval=options.val_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic=options.deterministic,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )


def _precision(options: TrainerConfig) -> str:
    """Lightning's precision for `options.precision`, see TrainerConfig."""
    if options.precision != "auto":
        return options.precision
    on_gpu = options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and torch.cuda.is_available())
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    precision = "bf16-mixed" if native else "32-true"
    log.info("precision %s", precision)
    return precision


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
    checkpoint = read_training_checkpoint(path)
    weights, _ = model_weights(checkpoint)
    check_tensors(weights, shapes(config.model), str(path))
    if config_of(checkpoint).lora != config.lora:
        raise ValueError(
            f"{path} was trained with other lora options ({config_of(checkpoint).lora}); resume with the same"
        )
    return str(path)
