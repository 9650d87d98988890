"""`train(config)`: from a configuration to a trained checkpoint and an exported model directory."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from csm.checkpoint.contents import checkpoint_extras
from csm.codec import check_same_codec, load_codec
from csm.config import CodecKind, TrainConfig
from csm.data.datamodule import CSMDataModule
from csm.data.dataset import ShardedDataset
from csm.data.sources import open_sources
from csm.formats.export import export
from csm.formats.open import open_checkpoint
from csm.model.csm import CSM
from csm.model.lora import apply_lora
from csm.text import TextTokenizer, load_tokenizer
from csm.training.callbacks import AudioSamples, StepProgressBar
from csm.training.candidates import Candidates
from csm.training.checkpoint_io import CheckpointWriter
from csm.training.checkpointing import Checkpoints
from csm.training.module import CSMTrainingModule
from csm.training.resume import check_same_run, find_checkpoints
from csm.training.signals import listening
from csm.training.trainer import build_trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> float | None:
    """Trains until `trainer.max_steps`; resumes where `ckpt_path` left off.

    Leaves in `run_dir`: config.yaml, checkpoints/ (csm/training/checkpointing.py), export/ (the last weights, with
    `trainer.validate_ema` their average, as a model directory), metrics.jsonl and, if anything went wrong,
    skipped_steps.jsonl and loss_spikes.jsonl (docs/metrics.md), samples/. Returns the best validation loss
    (unweighted), for sweeps; None without a validation split. Raises ValueError or OSError for what a user can mend,
    FloatingPointError where gradients stay non-finite, and preemption.Stopped, which ends the program, after a signal.
    """
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if config.data.demo:
        from data_prep.demo import prepare_demo  # only here does training touch data preparation

        prepare_demo(config)
    sources = open_sources(config.data)
    datasets = [source.dataset for source in sources.values()]
    dataset = datasets[0]  # for what all have in common: the codec
    tokenizer = load_tokenizer(config.tokenizer)
    codec_file = dataset.codec_file if config.codec.kind is CodecKind.spectral else None
    fingerprints = {name: source.dataset.info.fingerprint for name, source in sources.items()}
    extras = checkpoint_extras(config, fingerprints, dataset.codec, codec_file, tokenizer)
    candidates = Candidates(find_checkpoints(config), lambda path: check_same_run(path, extras, config))
    candidates.look()
    OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")

    L.seed_everything(config.seed, workers=True, verbose=False)
    with torch.device("meta"):
        model = CSM(config.model)
    if config.lora.rank:
        apply_lora(model, config.lora)
    module = CSMTrainingModule(config, model, extras, resumed=candidates.chosen is not None)
    data = CSMDataModule(config, sources, tokenizer)
    log.info("%s: %.1fM parameters", config.name, sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    for each in datasets:
        log.info("%s: %d conversations, %.2f hours", each.path, len(each), each.hours)

    writer = CheckpointWriter(module.stop, config.trainer.async_checkpoint, candidates)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.trainer, writer)
    callbacks: list[Callback] = [checkpoints, StepProgressBar()]
    validated = [each for each in datasets if len(each.shards("val"))]
    if not validated:
        paths = ", ".join(str(each.path) for each in datasets)
        log.warning("%s: no split 'val', so no validation and no best checkpoint", paths)
    if config.trainer.sample_every_steps:
        spoken = validated[0] if validated else dataset
        callbacks.append(_audio_samples(config, spoken, tokenizer, run_dir / "samples"))

    trainer = build_trainer(config, run_dir, callbacks, writer)
    with listening(module.stop, config.trainer.requeue):
        trainer.fit(module, datamodule=data, ckpt_path=candidates.chosen, weights_only=True)
        if trainer.is_global_zero:
            checkpoint = open_checkpoint(checkpoints.newest, averaged=config.trainer.validate_ema)
            export(checkpoint, run_dir / "export", overwrite=True)
    return None if math.isinf(checkpoints.best_loss) else checkpoints.best_loss


def _audio_samples(
    config: TrainConfig, dataset: ShardedDataset, tokenizer: TextTokenizer, folder: Path
) -> AudioSamples:
    codec_config = config.codec
    if codec_config.kind is CodecKind.spectral and codec_config.path is None:
        codec_config = replace(codec_config, path=str(dataset.codec_file))
    codec = load_codec(codec_config)
    check_same_codec(dataset.codec, codec.info, f"dataset {dataset.path} and codec")
    options = config.trainer
    return AudioSamples(dataset, codec, tokenizer, folder, options)
