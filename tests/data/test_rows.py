"""Rows as the model gets them, from a real dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm.config import DataConfig, LossConfig
from csm.data.dataset import ShardedDataset
from csm.data.rows import TrainRows, ValidationRows, drop_context, permuted_speakers, sample_turns
from csm.text import ByteTokenizer

TOKENIZER = ByteTokenizer()


@pytest.fixture
def dataset(small_dataset):
    return ShardedDataset(small_dataset)


def train_rows(dataset, rank=0, world_size=1, rows_per_microbatch=2, **options):
    data = DataConfig(
        path="", max_positions=384, rows_per_step=4, rows_per_microbatch=rows_per_microbatch, num_workers=0, **options
    )
    return TrainRows(dataset, TOKENIZER, data, LossConfig(decoder_frame_ratio=8), 5, rank, world_size)


def texts(rows) -> list[str]:
    """The text of every turn in batches, in order."""
    found = []
    for batch in rows:
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
            for ids in tokens[:, -1][mask[:, -1]].split_with_sizes([int(mask[:, -1].sum())]):
                parts = bytes(i for i in ids.tolist() if i < 256).decode()
                found += [part.split("]", 1)[1] for part in parts.split("[")[1:]]
    return found


def test_an_epoch_trains_on_every_turn_once(dataset):
    rows = train_rows(dataset)
    steps = rows.plan.steps_of_epoch(0)
    trained = texts(batch for step in range(steps) for batch in rows[step].microbatches)
    stored = [turn.text for i in dataset.select("train") for turn in dataset.read(int(i)).turns]
    assert sorted(trained) == sorted(stored)
    frames = sum(int(batch.targets.sum()) for step in range(steps) for batch in rows[step].microbatches)
    assert frames == int(dataset.n_frames[dataset.select("train")].sum()) + len(stored)  # and one end each


def test_ranks_and_microbatches_share_the_same_rows(dataset):
    whole = train_rows(dataset, rows_per_microbatch=4)[3].microbatches[0]
    parts = [train_rows(dataset, rank, 2, rows_per_microbatch=1)[3].microbatches for rank in (0, 1)]
    joined = [parts[0][0], parts[1][0], parts[0][1], parts[1][1]]  # row i of the step goes to rank i % 2
    for name in ("tokens", "mask", "positions", "documents", "targets", "slots", "slot_weights"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in joined])), name


def test_decoder_slots_are_new_every_step_and_cover_every_end(dataset):
    rows = train_rows(dataset, permute_speakers=False)
    chosen = []
    for step in range(0, 30):
        for batch in rows[step].microbatches:
            for row in range(2):
                ends = (batch.tokens[row, :, :-1] == 0).all(-1) & batch.mask[row, :, 0]
                slots = batch.slots[row][batch.slot_weights[row] > 0]
                assert set(torch.nonzero(ends).flatten().tolist()) <= set(slots.tolist())
                assert batch.slot_weights[row].sum() == pytest.approx(float(batch.targets[row].sum()), rel=1e-5)
            chosen.append(batch.slots)
    assert len({tuple(slots.flatten().tolist()) for slots in chosen}) == len(chosen)


def test_speakers_are_permuted_as_a_whole(dataset):
    sample = dataset.read(0)
    maps = [permuted_speakers(sample, np.random.default_rng(seed)) for seed in range(20)]
    assert {tuple(sorted(m.items())) for m in maps} == {((0, 0), (1, 1)), ((0, 1), (1, 0))}
    turns = sample_turns(sample, TOKENIZER, 10_000, {0: 1, 1: 0})
    for turn, stored in zip(turns, sample.turns, strict=True):
        assert bytes(turn.text[1:-1]).decode() == f"[{1 - stored.spk}]{stored.text}"


def test_dropped_context_keeps_every_turn_in_order(dataset):
    sample = next(s for s in (dataset.read(i) for i in range(len(dataset))) if len(s.turns) == 4)
    turns = sample_turns(sample, TOKENIZER, 10_000)
    lengths = set()
    for seed in range(40):
        parts = drop_context(turns, 0.5, np.random.default_rng(seed))
        assert [turn for part in parts for turn in part] == turns and all(parts)
        lengths.add(tuple(len(part) for part in parts))
    assert len(lengths) == 8  # each of the three boundaries cut or not
    assert drop_context(turns, 0.0, np.random.default_rng(0)) == [turns]
    rows = train_rows(dataset, context_dropout=1.0)
    batch = rows[0].microbatches[0]
    for row in range(2):  # every turn alone: positions restart at every text
        starts = batch.mask[row, :, -1] & (batch.tokens[row, :, -1] == TOKENIZER.bos_id)
        assert torch.equal(batch.positions[row][starts], torch.zeros(int(starts.sum()), dtype=torch.int64))


def test_long_conversations_keep_whole_leading_turns(dataset):
    sample = dataset.read(0)
    whole = sample_turns(sample, TOKENIZER, 10_000)
    two_turns = sum(turn.num_positions for turn in whole[:2])
    for limit, kept in ((two_turns, 2), (two_turns - 1, 1)):
        turns = sample_turns(sample, TOKENIZER, limit)
        assert [turn.text for turn in turns] == [turn.text for turn in whole[:kept]]
        assert all(torch.equal(turn.codes, full.codes) for turn, full in zip(turns, whole, strict=False))


def test_validation_uses_every_frame_once_on_any_number_of_ranks(dataset):
    data = DataConfig(path="", max_positions=384, rows_per_microbatch=1, num_workers=0)
    stored = [turn.text for i in dataset.select("val") for turn in dataset.read(int(i)).turns]
    for world_size in (1, 2):
        ranks = [ValidationRows(dataset, TOKENIZER, data, "val", rank, world_size) for rank in range(world_size)]
        assert len({len(rows) for rows in ranks}) == 1
        batches = [rows[i] for rows in ranks for i in range(len(rows))]
        assert sorted(texts(batches)) == sorted(stored)
        for batch in batches:
            assert (batch.slot_weights > 0).sum() == batch.targets.sum()
