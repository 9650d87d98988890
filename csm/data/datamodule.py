"""LightningDataModule over the sources of a run: its data loaders, and the cursor that checkpoints hold."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
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

_OPEN_FILES = 65536
_NAMED = 20  # skipped samples that are named in the log, each on its own line; the rest are counted


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


class CSMDataModule(L.LightningDataModule):
    """Training and validation data of one data-parallel rank.

    A training batch is a StepBatch, one for each optimizer step; a validation batch is a single RowBatch. Pass every
    batch that was trained on to `consumed`: the state then holds the cursor after it, and a resumed run reads on from
    there.

    rank, world_size: among the ranks that train on different rows; tensor-parallel ranks share theirs
    pin_memory: batches arrive in pinned memory, from which they are copied to a GPU while it computes

    Construction measures the lengths of the samples if that has not been done yet. Raises ValueError if the data do
    not fit the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: dict[str, Source],
        tokenizer: TextTokenizer,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        _allow_many_open_files()
        data = config.data
        self.datasets = {name: source.dataset for name, source in sources.items()}
        for dataset in self.datasets.values():
            check_data_fits_model(dataset, config.model, tokenizer)
        self.config, self.tokenizer = config, tokenizer
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory
        self.cursor: Cursor | None = None  # after the last batch trained on
        cache = cache_folder(data)
        self.layout = config.model.layout
        self.lengths = {
            name: load_lengths(dataset, tokenizer, cache, self.layout) for name, dataset in self.datasets.items()
        }
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
        return MixtureSource(plan, source.weight, source.max_epochs, source.final_weight)

    # ----------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader:
        """StepBatches from the cursor to the end of the stream; none if `finished`.

        Raises ValueError if a source has no sample to train on, or the rows of a step do not divide evenly.
        """
        self._check_lengths("train")
        config, data = self.config, self.config.data
        rows = TrainRows(self.datasets, self.tokenizer, data, config.loss, config.seed, self.layout)
        share = RankShare(data.global_batch_size, data.micro_batch_size, self.rank, self.world_size)
        return self._loader(rows, StepSampler(self.mixture, share, config.seed, self.cursor, data.mix_steps))

    def val_dataloader(self) -> DataLoader:
        """RowBatches of split "val" of all sources, equally many on every rank; its length is 0 if there are none."""
        self._check_lengths("val")
        rows = ValidationRows(
            self.datasets,
            self.lengths,
            self.tokenizer,
            self.config.data,
            "val",
            self.rank,
            self.world_size,
            self.layout,
        )
        return self._loader(rows)

    def _loader(self, rows: TrainRows | ValidationRows, sampler: Sampler[StepSpec] | None = None) -> DataLoader:
        workers = self.config.data.num_workers
        return DataLoader(
            rows,
            batch_size=None,  # an item already is a batch
            sampler=sampler,
            num_workers=workers,
            pin_memory=self.pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_outlive_sigterm,
        )

    def _check_lengths(self, split: str) -> None:
        """Warns of samples that do not fit into a row. Raises ValueError if a source has none to train on."""
        limit = self.config.data.max_seq_len
        for name, dataset in self.datasets.items():
            found = fit(dataset.shards(split), self.lengths[name], limit)
            if split == "train" and len(found.too_long) == found.samples:
                reason = f"no first turn fits into data.max_seq_len={limit}" if found.samples else "it is empty"
                raise ValueError(f"{dataset.path}: no samples to train on in split 'train': {reason}")
            self._warn(name, found)

    @rank_zero_only
    def _warn(self, name: str, found: Fit) -> None:
        dataset, limit = self.datasets[name], self.config.data.max_seq_len
        for number in found.too_long[:_NAMED]:
            log.warning(
                "%s: sample %s is skipped: its first turn needs %d positions, a row has data.max_seq_len=%d; raise it, "
                "or prepare the data with a smaller turns.max_seconds (turns.max_given_seconds for given turns)",
                dataset.path,
                dataset.key(int(number)),
                self.lengths[name][1, number],
                limit,
            )
        if len(found.too_long) > _NAMED:
            log.warning("%s: %d more samples are skipped likewise", dataset.path, len(found.too_long) - _NAMED)
        if found.shortened:
            log.warning(
                "%s: %d of %d conversations are longer than data.max_seq_len=%d and keep their leading turns only",
                dataset.path,
                found.shortened,
                found.samples - len(found.too_long),
                limit,
            )

    # -------------------------------------------------------------------------------------- cursor and state

    @property
    def finished(self) -> bool:
        """Whether every source has finished its `max_epochs`; the same on all ranks after the same step."""
        return self.cursor is not None and is_finished(self.cursor, self.mixture)

    def consumed(self, batch: StepBatch) -> None:
        """Notes that a batch was trained on."""
        self.cursor = batch.cursor

    def check_resumable(self, step: int) -> None:
        """Raises ValueError if the run is past its first `step` but the checkpoint held no cursor."""
        if step and self.cursor is None:
            raise ValueError(
                "the checkpoint does not say how far its data were read, so it cannot be continued; "
                "train on from its weights instead: init_from=CHECKPOINT ckpt_path=null"
            )

    def state_dict(self) -> dict[str, Any]:
        return {} if self.cursor is None else {"cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the cursor. It is only meaningful in the same order of the data: see csm/checkpoint/resume.py."""
        self.cursor = state.get("cursor")


def _allow_many_open_files() -> None:
    """Raises the limit of open files as far as this process may: each tensor of a batch that a worker has prepared is
    one until it is used, and common limits of 1024 are below what a few workers with many microbatches hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _outlive_sigterm(worker: int) -> None:
    """Makes a worker ignore SIGTERM unless its parent process sent it.

    Schedulers send the signal to every process of a job, but training still finishes its step, for which it needs its
    workers (csm/training/signals.py).
    """

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait_for_parent, daemon=True).start()
