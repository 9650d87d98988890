"""LightningDataModule over the sources of a run: the loaders, and the place in the data that a checkpoint keeps."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy
from torch.utils.data import DataLoader, Sampler

from csm.config import CSMConfig, TrainConfig
from csm.data.dataset import ShardedDataset
from csm.data.lengths import Fit, fit, load_lengths
from csm.data.packing import StepBatch
from csm.data.plan import EpochPlan
from csm.data.rows import TrainRows, ValidationRows
from csm.data.sources import Source, cache_folder
from csm.data.stream import Cursor, MixtureSource, RankShare, StepSampler, StepSpec, is_finished
from csm.text import TextTokenizer

log = logging.getLogger(__name__)

_NAMED = 20  # samples that are left out, each named in a line of its own


def check_data_fits_model(dataset: ShardedDataset, model: CSMConfig, tokenizer: TextTokenizer) -> None:
    """Raises ValueError if the dataset's codes or the tokenizer's ids do not match the model's tables."""
    codec = dataset.codec
    if (codec.num_codebooks, codec.codebook_size) != (model.num_codebooks, model.codebook_size):
        raise ValueError(
            f"{dataset.path}: codes are {codec.name} {codec.num_codebooks} x {codec.codebook_size}, the model has "
            f"{model.num_codebooks} codebooks of {model.codebook_size}; choose codec={codec.name} "
            f"codec.num_codebooks={codec.num_codebooks} codec.codebook_size={codec.codebook_size}"
        )
    if tokenizer.vocab_size > model.text_vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's text table {model.text_vocab_size}; "
            f"set model.text_vocab_size={tokenizer.vocab_size}"
        )


def data_ranks(trainer: L.Trainer) -> tuple[int, int]:
    """(number of this rank, how many there are) among the ranks that train on different rows."""
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy):
        return 0, 1
    numbers = strategy.distributed_sampler_kwargs  # of the mesh's data-parallel dimension, where there is a mesh
    return numbers["rank"], numbers["num_replicas"]


class CSMDataModule(L.LightningDataModule):
    """Training batches are StepBatches, one for each optimizer step; validation batches are single RowBatches.

    `consumed` is to be called with every batch that was trained on; checkpoints then hold the place after it, and a
    resumed run goes on from there. Building the data module measures the samples' lengths where that was not done yet.
    """

    def __init__(self, config: TrainConfig, sources: dict[str, Source], tokenizer: TextTokenizer) -> None:
        super().__init__()
        data = config.data
        self.datasets = {name: source.dataset for name, source in sources.items()}
        for dataset in self.datasets.values():
            check_data_fits_model(dataset, config.model, tokenizer)
        if data.max_seq_len > config.model.max_seq_len:
            raise ValueError(
                f"data.max_seq_len={data.max_seq_len} exceeds model.max_seq_len={config.model.max_seq_len}"
            )
        if data.window_shards < 1:
            raise ValueError(f"data.window_shards={data.window_shards} must be at least 1")
        self.config, self.tokenizer = config, tokenizer
        self.cursor: Cursor | None = None  # after the last batch trained on
        cache = cache_folder(data)
        self.lengths = {name: load_lengths(dataset, tokenizer, cache) for name, dataset in self.datasets.items()}
        self.mixture = {name: self._mixture_source(name, source) for name, source in sources.items()}

    def _mixture_source(self, name: str, source: Source) -> MixtureSource:
        data = self.config.data
        plan = EpochPlan(
            name,
            source.dataset.shards("train"),
            self.lengths[name],
            data.max_seq_len,
            data.window_shards,
            self.config.seed,
        )
        return MixtureSource(plan, source.weight, source.max_epochs)

    # ----------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader:
        config, trainer = self.config, self.trainer
        self._check_lengths("train")
        if trainer.global_step and self.cursor is None:
            raise ValueError(
                "the checkpoint does not say how far its data were read, so it cannot be continued; "
                "train on from its weights instead: init_from=CHECKPOINT ckpt_path=null"
            )
        if self.finished:
            self._stop()
        data = config.data
        rows = TrainRows(self.datasets, self.tokenizer, data, config.loss, config.seed)
        share = RankShare(data.global_batch_size, data.micro_batch_size, *data_ranks(trainer))
        return self._loader(rows, sampler=StepSampler(self.mixture, share, config.seed, self.cursor))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        self._check_lengths("val")
        rank, ranks = data_ranks(self.trainer)
        rows = ValidationRows(self.datasets, self.lengths, self.tokenizer, self.config.data, "val", rank, ranks)
        return self._loader(rows) if len(rows) else []

    def _loader(self, rows: TrainRows | ValidationRows, sampler: Sampler[StepSpec] | None = None) -> DataLoader:
        workers = self.config.data.num_workers
        return DataLoader(
            rows,
            batch_size=None,  # an item already is a batch
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_outlive_sigterm,
        )

    def _check_lengths(self, split: str) -> None:
        """Warns of samples that do not fit into a row. Raises ValueError if a source has none to train on."""
        limit = self.config.data.max_seq_len
        for name, dataset in self.datasets.items():
            found = fit(dataset.shards(split), self.lengths[name], limit)
            if split == "train" and len(found.left_out) == found.samples:
                reason = f"no first turn fits into data.max_seq_len={limit}" if found.samples else "it is empty"
                raise ValueError(f"{dataset.path}: no samples to train on in split 'train': {reason}")
            if self.trainer.is_global_zero:
                self._warn(name, found)

    def _warn(self, name: str, found: Fit) -> None:
        dataset, limit = self.datasets[name], self.config.data.max_seq_len
        for number in found.left_out[:_NAMED]:
            log.warning(
                "%s: sample %s is left out: its first turn needs %d positions, a row has data.max_seq_len=%d; raise "
                "it, or prepare the data with a smaller max_turn_seconds",
                dataset.path,
                dataset.key(int(number)),
                self.lengths[name][1, number],
                limit,
            )
        if len(found.left_out) > _NAMED:
            log.warning("%s: %d more samples are left out likewise", dataset.path, len(found.left_out) - _NAMED)
        if found.shortened:
            log.warning(
                "%s: %d of %d conversations are longer than data.max_seq_len=%d and keep their leading turns only",
                dataset.path,
                found.shortened,
                found.samples - len(found.left_out),
                limit,
            )

    # ------------------------------------------------------------------------------------- place in the data

    @property
    def finished(self) -> bool:
        """Whether every source has finished its `max_epochs`."""
        return self.cursor is not None and is_finished(self.cursor, self.mixture)

    def consumed(self, batch: StepBatch) -> None:
        """Notes that a batch was trained on; ends the run after the last one, on every rank at the same step."""
        self.cursor = batch.cursor
        if self.finished:
            self._stop()

    def _stop(self) -> None:
        self.trainer.should_stop = True
        if self.trainer.is_global_zero:
            log.info("all sources have finished their max_epochs after step %d: the run ends", self.cursor["step"])

    def state_dict(self) -> dict[str, Any]:
        return {} if self.cursor is None else {"cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The numbers of a cursor mean something in the same order of the data only: csm/training/resume.py."""
        self.cursor = state["cursor"]


def _outlive_sigterm(worker: int) -> None:
    """Makes a worker heed SIGTERM from its own process only.

    Schedulers send it to every process of a job, but training still finishes its step (csm/training/signals.py) and
    needs its workers for that.
    """

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait_for_parent, daemon=True).start()
