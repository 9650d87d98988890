"""Samples -> the row batches of each optimizer step (training) or of the whole split (validation)."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch.utils.data import Dataset

from csm.config import DataConfig, LossConfig
from csm.data.dataset import ShardedDataset
from csm.data.packing import RowBatch, StepBatch, num_slots, pack_row, stack_rows
from csm.data.plan import StepPlan, next_fit
from csm.data.sample import Sample
from csm.frames import TurnTokens, conversation_frames
from csm.text import TextTokenizer

log = logging.getLogger(__name__)


def sample_turns(
    sample: Sample, tokenizer: TextTokenizer, max_positions: int, speakers: dict[int, int] | None = None
) -> list[TurnTokens]:
    """The turns of a stored conversation, tokenized, with its speaker ids renamed by `speakers`.

    A conversation longer than `max_positions` keeps its leading turns: whole turns, never audio without its text.
    """
    turns, total = [], 0
    for turn in sample.turns:
        speaker = turn.spk if speakers is None else speakers[turn.spk]
        codes = torch.from_numpy(sample.codes[:, turn.f0 : turn.f0 + turn.nf].astype(np.int64))
        tokens = TurnTokens(tokenizer.encode_turn(turn.text, speaker), codes, turn.loss)
        total += tokens.num_positions
        if total > max_positions:
            break
        turns.append(tokens)
    return turns


def drop_context(turns: list[TurnTokens], chance: float, rng: np.random.Generator) -> list[list[TurnTokens]]:
    """Cuts a conversation, with `chance` at each boundary between turns, into parts that are read on their own.

    So the model also learns to speak with little or no context, and no turn is lost.
    """
    parts = [turns[:1]]
    for turn in turns[1:]:
        if rng.random() < chance:
            parts.append([])
        parts[-1].append(turn)
    return parts


def permuted_speakers(sample: Sample, rng: np.random.Generator) -> dict[int, int]:
    """A random renaming of the conversation's speaker ids among themselves, so that an id carries no voice and
    "speaks first" no identity."""
    ids = sorted({turn.spk for turn in sample.turns})
    return dict(zip(ids, rng.permutation(ids).tolist(), strict=True))


def usable_samples(
    dataset: ShardedDataset, split: str, tokenizer: TextTokenizer, max_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers of a split and their lengths in positions under this tokenizer.

    A conversation is as long as its leading turns that fit into a row. One whose first turn alone does not fit
    cannot be trained on: it is left out with a warning that names it.
    """
    numbers, lengths, shortened = [], [], 0
    for number in dataset.select(split):
        sample = dataset.read(int(number))
        positions = [len(tokenizer.encode_turn(turn.text, turn.spk)) + turn.nf + 1 for turn in sample.turns]
        ends = np.cumsum(positions)
        fitting = int(np.searchsorted(ends, max_positions, side="right"))
        if fitting == 0:
            log.warning(
                "%s: sample %s is left out: its first turn needs %d positions, a row has data.max_positions=%d; raise "
                "it, or prepare the data with a smaller max_turn_seconds",
                dataset.path,
                sample.key,
                positions[0],
                max_positions,
            )
            continue
        shortened += fitting < len(positions)
        numbers.append(number)
        lengths.append(ends[fitting - 1])
    if shortened:
        log.warning(
            "%s: %d of %d conversations are longer than data.max_positions=%d and keep their leading turns only",
            dataset.path,
            shortened,
            len(numbers),
            max_positions,
        )
    return np.array(numbers, dtype=np.int64), np.array(lengths, dtype=np.int64)


class TrainRows(Dataset):
    """Item `step` = what one rank computes in that optimizer step.

    Every random choice of a row (speaker ids, dropped context, decoder frames) is drawn from (seed, step, row of the
    global step), so neither ranks, workers nor microbatching change what is trained on.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        tokenizer: TextTokenizer,
        data: DataConfig,
        loss: LossConfig,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        if data.rows_per_step % (data.rows_per_microbatch * world_size):
            raise ValueError(
                f"data.rows_per_step={data.rows_per_step} is not a multiple of data.rows_per_microbatch="
                f"{data.rows_per_microbatch} x {world_size} ranks"
            )
        self.dataset, self.tokenizer, self.data = dataset, tokenizer, data
        self.slots = num_slots(data.max_positions, loss.decoder_frame_ratio)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.numbers, lengths = usable_samples(dataset, "train", tokenizer, data.max_positions)
        self.plan = StepPlan(lengths, data.max_positions, data.rows_per_step, seed)

    def __getitem__(self, step: int) -> StepBatch:
        _, rows = self.plan.rows(step)
        per_pass = self.data.rows_per_microbatch
        batches, keys = [], []
        for first in range(self.rank * per_pass, self.data.rows_per_step, self.world_size * per_pass):
            numbers = range(first, first + per_pass)
            batches.append(stack_rows([self._row(step, i, rows) for i in numbers]))
            keys += [[self.dataset.keys[self.numbers[p]] for p in rows[i]] if i < len(rows) else [] for i in numbers]
        return StepBatch(
            microbatches=batches,
            frames=sum(int(batch.targets.sum()) for batch in batches),
            positions=sum(int((batch.documents >= 0).sum()) for batch in batches),
            keys=keys,
        )

    def _row(self, step: int, index: int, rows: list[np.ndarray]) -> RowBatch:
        rng = np.random.default_rng((self.seed, step, index))
        documents = []
        for position in rows[index] if index < len(rows) else []:
            sample = self.dataset.read(int(self.numbers[position]))
            speakers = permuted_speakers(sample, rng) if self.data.permute_speakers else None
            turns = sample_turns(sample, self.tokenizer, self.data.max_positions, speakers)
            parts = drop_context(turns, self.data.context_dropout, rng)
            documents += [conversation_frames(part, self.dataset.codec.num_codebooks) for part in parts]
        return pack_row(documents, self.data.max_positions, self.dataset.codec.num_codebooks, self.slots, rng)


class ValidationRows(Dataset):
    """Item i = the i-th batch of one rank over a whole split: every frame in the depth decoder, stored speaker ids,
    no dropped context. All ranks have equally many batches (the last ones may be empty rows)."""

    def __init__(
        self,
        dataset: ShardedDataset,
        tokenizer: TextTokenizer,
        data: DataConfig,
        split: str,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset, self.tokenizer, self.data = dataset, tokenizer, data
        self.rank, self.world_size = rank, world_size
        self.numbers, lengths = usable_samples(dataset, split, tokenizer, data.max_positions)
        self.rows = next_fit(np.arange(len(lengths)), lengths, data.max_positions) if len(lengths) else []

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.data.rows_per_microbatch * self.world_size))

    def __getitem__(self, index: int) -> RowBatch:
        first = (index * self.world_size + self.rank) * self.data.rows_per_microbatch
        return stack_rows([self._row(i) for i in range(first, first + self.data.rows_per_microbatch)])

    def _row(self, index: int) -> RowBatch:
        documents = []
        for position in self.rows[index] if index < len(self.rows) else []:
            sample = self.dataset.read(int(self.numbers[position]))
            turns = sample_turns(sample, self.tokenizer, self.data.max_positions)
            documents.append(conversation_frames(turns, self.dataset.codec.num_codebooks))
        length = self.data.max_positions
        return pack_row(documents, length, self.dataset.codec.num_codebooks, length, np.random.default_rng(0))
