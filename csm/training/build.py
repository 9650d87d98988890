"""`train(config)`: from a configuration to a trained checkpoint and an exported model directory.

Data, processes, model, optimizer and checkpoint are put together here; the loop is csm/training/train.py.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from filelock import FileLock, Timeout
from hydra.utils import call, instantiate
from omegaconf import OmegaConf

from csm.checkpoint.contents import checkpoint_extras
from csm.checkpoint.resume import CheckpointFallback, check_same_run, find_checkpoints
from csm.checkpoint.writer import BEST
from csm.codec import check_same_codec, load_codec
from csm.config import CodecKind, CodeLayout, StrategyName, TrainConfig
from csm.data.datamodule import CSMDataModule
from csm.data.dataset import ShardedDataset
from csm.data.sources import open_sources
from csm.formats.export import export
from csm.formats.init_weights import initialize
from csm.formats.open import open_checkpoint
from csm.kernels import cpu, cuda
from csm.model.freeze import freeze
from csm.model.lora import apply_lora
from csm.model.single_stack import build_model
from csm.parallel.plan import parallelize, precision
from csm.parallel.ranks import global_rank
from csm.parallel.strategies import build_engine, build_fabric, count_devices, data_ranks, device_mesh
from csm.planning.device import microbatch_advice
from csm.spoken_text import check_languages
from csm.stability.sample_metrics import load_judges
from csm.text import TextTokenizer, load_tokenizer
from csm.training.loggers import build_loggers
from csm.training.module import CSMTrainingModule
from csm.training.sample_prompts import Prompt, choose_prompts
from csm.training.samples import AudioSamples
from csm.training.signals import signal_handlers
from csm.training.train import TrainingLoop
from csm.validate import validate_train_config

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> float | None:
    """Trains until `trainer.max_steps`; resumes where `ckpt_path` left off.

    Leaves in `run_dir`: config.yaml, checkpoints/ (csm/checkpoint/writer.py), export/ (a model directory of the last
    weights, with `trainer.early_stop` of the best ones, with `trainer.validate_ema` of their average), metrics.jsonl
    and, if anything went wrong, skipped_steps.jsonl and loss_spikes.jsonl (docs/metrics.md), samples/. Returns the best
    validation loss (unweighted), for sweeps; None without a validation split. Raises ValueError or OSError for what a
    user can fix,
    FloatingPointError where gradients stay non-finite, and signals.Stopped, which ends the program, after a signal.
    """
    num_devices, device = count_devices(config.trainer)
    validate_train_config(config, num_devices, device.type)
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with _lock(run_dir):
        if config.data.prepare:
            call(config.data.prepare, config)
        loop = build_loop(config, num_devices)
        with signal_handlers(loop.stop, config.trainer.requeue):
            loop.run()
            if loop.fabric.is_global_zero and loop.checkpoints.newest is not None:
                best = loop.checkpoints.folder / BEST
                # Without a best step of this run, a best.ckpt is of an earlier one.
                chosen = best if config.trainer.early_stop.metric and loop.best_step else loop.checkpoints.newest
                checkpoint = open_checkpoint(chosen, averaged=config.trainer.validate_ema)
                export(checkpoint, run_dir / "export", overwrite=True)
    return None if math.isinf(loop.best_loss) else loop.best_loss


def build_loop(config: TrainConfig, num_devices: int) -> TrainingLoop:
    """Opens the data, starts the processes, and builds the model with the weights that the run starts from."""
    run_dir, options = Path(config.run_dir), config.trainer
    sources = open_sources(config.data)
    datasets = [source.dataset for source in sources.values()]
    dataset = datasets[0]  # for what all have in common: the codec
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.normalize is not None:
        for name, source in sources.items():
            check_languages(tokenizer.normalize, source.dataset.info.langs, f"dataset {name}")
    codec_file = dataset.codec_file if config.codec.kind is CodecKind.spectral else None
    fingerprints = {name: source.dataset.info.fingerprint for name, source in sources.items()}
    extras = checkpoint_extras(config, fingerprints, dataset.codec, codec_file, tokenizer)
    resume = CheckpointFallback(find_checkpoints(config), lambda path: check_same_run(path, extras, config))
    resume.select()
    if global_rank() == 0:
        OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")

    for package in ("pytorch", "fabric"):  # advertisements, and the precision, which is in a line of ours
        logging.getLogger(f"lightning.{package}.utilities.rank_zero").setLevel(logging.WARNING)
    callbacks = [instantiate(node) for node in config.callbacks.values()]
    fabric = build_fabric(config, num_devices, build_loggers(config.logger), callbacks)
    fabric.launch()
    L.seed_everything(config.seed, workers=True, verbose=False)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)
    rank, world_size = data_ranks(fabric)
    on_cuda = fabric.device.type == "cuda"
    data = CSMDataModule(config, sources, tokenizer, rank=rank, world_size=world_size, pin_memory=on_cuda)

    with torch.device("meta"):
        model = build_model(config.model)
    if config.lora.rank:
        apply_lora(model, config.lora)
    freeze(model, config.freeze)
    if on_cuda:
        cuda.install(model)
    elif not options.compile:
        cpu.install(model)
    mesh, bf16, offload = device_mesh(fabric), precision(options) == "bf16-mixed", config.strategy.cpu_offload
    parallelize(model, mesh, options.activation_checkpointing, options.compile, bf16=bf16, cpu_offload=offload)
    # Whole models are drawn on the CPU and moved by the strategy: the same values on every kind of device.
    model.to_empty(device=fabric.device if mesh is not None and not offload else "cpu")
    initialize(model, config, resumed=resume.chosen is not None)
    module = CSMTrainingModule(config, model)
    parameters = sum(p.numel() for p in model.parameters())  # ZeRO 3 will leave none here
    engine = build_engine(fabric, config, module, module.configure_optimizers())
    if config.strategy.name is StrategyName.ddp:
        module.fill_buckets(engine)
    log.info("%s: %.1fM parameters, %s", config.name, parameters / 1e6, precision(options))
    if config.model.layout is not CodeLayout.depth and config.loss.decoder_frame_ratio != 1:
        log.info(
            "model.layout=%s has no depth decoder to amortize: every code of every frame is trained on, whatever "
            "loss.decoder_frame_ratio",
            config.model.layout.value,
        )
    if fabric.device.type == "cuda" and config.model.layout is CodeLayout.depth:
        log.info(microbatch_advice(config, torch.cuda.get_device_properties(fabric.device).total_memory, num_devices))
    for each in datasets:
        log.info("%s: %d conversations, %.2f hours", each.path, len(each), each.hours)
    validated = any(len(each.shards("val")) for each in datasets)
    if not validated:
        paths = ", ".join(str(each.path) for each in datasets)
        log.warning("%s: no split 'val', so no validation and no best checkpoint", paths)
    samples = None
    if options.sample_every_steps and validated:
        prompts = choose_prompts(sources, tokenizer, config)
        samples = _audio_samples(config, prompts, dataset, tokenizer) if prompts else None
    return TrainingLoop(config, fabric, engine, module, data, extras, resume, samples)


def _lock(run_dir: Path) -> AbstractContextManager[object]:
    """Held by rank 0 for as long as it trains in `run_dir`. Raises ValueError if another training holds it."""
    if global_rank() != 0:
        return nullcontext()
    try:
        return FileLock(run_dir / "train.lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"run_dir={run_dir}: another training is running there; wait for it or choose another run_dir"
        ) from None


def _audio_samples(
    config: TrainConfig, prompts: list[Prompt], dataset: ShardedDataset, tokenizer: TextTokenizer
) -> AudioSamples:
    """dataset: one of those that are trained on, all of which have the same codec"""
    codec_config = config.codec
    if codec_config.kind is CodecKind.spectral and codec_config.path is None:
        codec_config = replace(codec_config, path=str(dataset.codec_file))
    codec = load_codec(codec_config)
    check_same_codec(dataset.codec, codec.info, f"dataset {dataset.path} and codec")
    judges = load_judges(config.trainer, codec_config.device) if global_rank() == 0 else []  # which speaks
    return AudioSamples(prompts, codec, tokenizer, Path(config.run_dir) / "samples", config.trainer, judges)
