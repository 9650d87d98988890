"""Rows as the model gets them, from a real dataset."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from csm.config import DataConfig, LossConfig
from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.data.packing import StepBatch
from csm.data.plan import EpochPlan
from csm.data.rows import TrainRows, ValidationRows, drop_context, permuted_speakers, sample_turns
from csm.data.stream import MixtureSource, RankShare, StepSampler
from csm.text import ByteTokenizer
from tests.data.made_datasets import write_dataset

TOKENIZER = ByteTokenizer()


@pytest.fixture
def dataset(small_dataset):
    return ShardedDataset(small_dataset)


def train_steps(
    dataset, steps=None, rank=0, world_size=1, micro_batch_size=2, max_epochs=None, max_seq_len=384, **options
) -> list[StepBatch]:
    """The first steps of one rank; all of `max_epochs` with steps=None."""
    data = DataConfig(
        path="", max_seq_len=max_seq_len, global_batch_size=4, micro_batch_size=micro_batch_size, **options
    )
    rows = TrainRows({"data": dataset}, TOKENIZER, data, LossConfig(decoder_frame_ratio=8), seed=5)
    lengths = load_lengths(dataset, TOKENIZER, Path("unused"))
    plan = EpochPlan("data", dataset.shards("train"), lengths, max_seq_len, 16, seed=5)
    share = RankShare(4, micro_batch_size, rank, world_size)
    sampler = StepSampler({"data": MixtureSource(plan, max_epochs=max_epochs)}, share, 5, None)
    return [rows[spec] for spec in islice(iter(sampler), steps)]


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
    batches = [batch for step in train_steps(dataset, max_epochs=1) for batch in step.microbatches]
    stored = [turn.text for i in dataset.select("train") for turn in dataset.read(int(i)).turns]
    assert sorted(texts(batches)) == sorted(stored)
    frames = sum(int(batch.targets.sum()) for batch in batches)
    assert frames == int(dataset.column("n_frames")[dataset.select("train")].sum()) + len(stored)  # and one end each


def test_a_step_names_its_samples_and_counts_what_it_holds(dataset):
    steps = train_steps(dataset, max_epochs=1)
    assert sorted(key for step in steps for row in step.keys for key in row) == sorted(
        dataset.column("key")[dataset.select("train")]
    )
    for step in steps:
        assert step.frames == sum(int(batch.targets.sum()) for batch in step.microbatches)
        assert step.positions == sum(int(batch.mask.any(-1).sum()) for batch in step.microbatches)
    assert [step.cursor["step"] for step in steps] == list(range(1, len(steps) + 1))


def test_ranks_and_microbatches_share_the_same_rows(dataset):
    whole = train_steps(dataset, 4, micro_batch_size=4)[3].microbatches[0]
    parts = [train_steps(dataset, 4, rank, 2, micro_batch_size=1)[3].microbatches for rank in (0, 1)]
    joined = [parts[0][0], parts[1][0], parts[0][1], parts[1][1]]  # row i of the step goes to rank i % 2
    for name in ("tokens", "mask", "positions", "documents", "targets", "slots", "slot_weights"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in joined])), name


def test_decoder_slots_are_new_every_step_and_cover_every_end(dataset):
    chosen = []
    for step in train_steps(dataset, 30, permute_speakers=False):
        for batch in step.microbatches:
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
        assert bytes(turn.text[1:-1]).decode() == f"[{1 - stored.speaker}]{stored.text}"


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
    batch = train_steps(dataset, 1, context_dropout=1.0)[0].microbatches[0]
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


def test_in_short_rows_conversations_are_shortened_or_skipped(dataset):
    """45 positions: some first turns do not fit, most conversations are longer, a few fit as a whole."""
    expected = []
    for i in dataset.select("train"):
        turns = sample_turns(dataset.read(int(i)), TOKENIZER, 45)
        expected += [bytes(turn.text[1:-1]).decode().split("]", 1)[1] for turn in turns]
    batches = [batch for step in train_steps(dataset, max_epochs=1, max_seq_len=45) for batch in step.microbatches]
    assert sorted(texts(batches)) == sorted(expected) and len(expected) > 10


@pytest.mark.parametrize("speakers", [(0, 1), (9, 10), (3, 100, 25)])
def test_no_renaming_of_speakers_exceeds_a_samples_length(dataset, tmp_path, speakers):
    """Ids with other digit counts change the texts' lengths: a length is the bound over all of them."""
    source = next(s for s in (dataset.read(i) for i in range(len(dataset))) if len(s.turns) == 4)
    turns = [replace(turn, speaker=speakers[i % len(speakers)]) for i, turn in enumerate(source.turns)]
    stored = write_dataset(tmp_path / "data", [replace(source, turns=turns)])
    ((whole, first_turn),) = load_lengths(ShardedDataset(stored), TOKENIZER, tmp_path).T.tolist()
    lengths, firsts = [], []
    for ids in permutations(speakers):
        renamed = sample_turns(replace(source, turns=turns), TOKENIZER, 10_000, dict(zip(speakers, ids, strict=True)))
        lengths.append(sum(turn.num_positions for turn in renamed))
        firsts.append(renamed[0].num_positions)
    assert whole >= max(lengths) and first_turn == max(firsts)
    assert whole - max(lengths) <= len(turns) * 2  # no looser than the digits
    assert whole == lengths[0] or speakers != (0, 1)


def test_validation_uses_every_frame_once_on_any_number_of_ranks(dataset):
    data = DataConfig(path="", max_seq_len=384, micro_batch_size=1, num_workers=0)
    stored = [turn.text for i in dataset.select("val") for turn in dataset.read(int(i)).turns]
    datasets, lengths = {"data": dataset}, {"data": load_lengths(dataset, TOKENIZER, Path("unused"))}
    for world_size in (1, 2):
        ranks = [
            ValidationRows(datasets, lengths, TOKENIZER, data, "val", rank, world_size) for rank in range(world_size)
        ]
        assert len({len(rows) for rows in ranks}) == 1
        batches = [rows[i] for rows in ranks for i in range(len(rows))]
        assert sorted(texts(batches)) == sorted(stored)
        for batch in batches:
            assert (batch.slot_weights > 0).sum() == batch.targets.sum()
