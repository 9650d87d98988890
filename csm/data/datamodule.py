"""LightningDataModule over a prepared dataset."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
from torch.utils.data import DataLoader, Sampler

from csm.config import CSMConfig, TrainConfig
from csm.data.dataset import ShardedDataset
from csm.data.rows import TrainRows, ValidationRows
from csm.text import TextTokenizer
from csm.training.parallel import data_ranks


class StepSampler(Sampler[int]):
    """Optimizer steps `start..total-1`. Its length is `total`, since Lightning counts the steps before a resume as
    batches of the same epoch."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


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
    """Training batches are StepBatches, one for each optimizer step; validation batches are single RowBatches. The data
    order is a function of the optimizer step, so resuming needs no state of its own."""

    def __init__(self, config: TrainConfig, dataset: ShardedDataset, tokenizer: TextTokenizer) -> None:
        super().__init__()
        check_data_fits_model(dataset, config.model, tokenizer)
        if config.data.max_positions > config.model.max_positions:
            raise ValueError(
                f"data.max_positions={config.data.max_positions} exceeds model.max_positions="
                f"{config.model.max_positions}"
            )
        self.config, self.dataset, self.tokenizer = config, dataset, tokenizer

    def train_dataloader(self) -> DataLoader:
        config, trainer = self.config, self.trainer
        rank, ranks = data_ranks(trainer)
        rows = TrainRows(self.dataset, self.tokenizer, config.data, config.loss, config.seed, rank, ranks)
        sampler = StepSampler(trainer.global_step, config.trainer.max_steps)
        return self._loader(rows, sampler=sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        rank, ranks = data_ranks(self.trainer)
        rows = ValidationRows(self.dataset, self.tokenizer, self.config.data, "val", rank, ranks)
        return self._loader(rows) if len(rows) else []

    def _loader(self, rows: TrainRows | ValidationRows, sampler: Sampler[int] | None = None) -> DataLoader:
        workers = self.config.data.num_workers
        return DataLoader(
            rows,
            batch_size=None,  # an item already is a batch
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
