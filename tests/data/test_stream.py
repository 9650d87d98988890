"""The stream of rows: nothing lost or repeated with any ranks, workers and resumes; mixtures with their weights."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from csm.data.plan import EpochPlan
from csm.data.stream import Cursor, MixtureSource, RankShare, StepSampler, StepSpec, is_finished

POSITIONS = 64


def source(name: str, samples: int, weight: float = 1.0, max_epochs: int | None = None) -> MixtureSource:
    """Samples in shards of 10 (the last may have fewer), windows of 2 shards."""
    rng = np.random.default_rng(samples)
    first = np.arange(0, samples, 10)
    shards = np.stack([first, np.minimum(10, samples - first)], axis=1)
    lengths = np.stack([rng.integers(3, 60, samples), np.full(samples, 2)]).astype(np.int32)
    return MixtureSource(EpochPlan(name, shards, lengths, POSITIONS, 2, seed=1), weight, max_epochs)


def steps(sources, rank=0, world_size=1, micro_batch_size=1, cursor=None, global_batch_size=4):
    share = RankShare(global_batch_size, micro_batch_size, rank, world_size)
    return StepSampler(sources, share, 1, cursor)


def global_steps(sources, count: int | None, world_size=1, micro_batch_size=1, cursor: Cursor | None = None):
    """Steps of all ranks put together: for each, the rows in the order of the global step, and the cursor."""
    ranks = [
        islice(iter(steps(sources, rank, world_size, micro_batch_size, cursor)), count) for rank in range(world_size)
    ]
    joined = []
    for specs in zip(*ranks, strict=True):
        assert len({json.dumps(spec.cursor) for spec in specs}) == 1 and len({spec.step for spec in specs}) == 1
        rows = sorted((row for spec in specs for row in spec.rows), key=lambda row: row.index)
        assert [row.index for row in rows] == list(range(4))
        joined.append((specs[0].step, [(row.source, row.samples.tolist()) for row in rows], specs[0].cursor))
    return joined


def samples_of(joined) -> list[int]:
    return [i for _, rows, _ in joined for _, samples in rows for i in samples]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_ranks_and_microbatches_share_one_stream(world_size, micro_batch_size):
    sources = {"a": source("a", 87, max_epochs=3)}
    joined = global_steps(sources, None, world_size, micro_batch_size)
    assert joined == global_steps(sources, None)
    assert Counter(samples_of(joined)) == dict.fromkeys(range(87), 3)
    # No partial step but the last: windows and epochs end in the middle of steps.
    assert all(samples for _, rows, _ in joined[:-1] for _, samples in rows)
    assert is_finished(joined[-1][2], sources) and not is_finished(joined[-2][2], sources)


@pytest.mark.parametrize("cut", [1, 5, 11, 17])
def test_resumed_with_other_ranks_nothing_is_lost_or_repeated(cut):
    sources = {"a": source("a", 87, weight=2.0), "b": source("b", 23)}
    whole = global_steps(sources, 25)
    before = global_steps(sources, cut, world_size=2)
    cursor = json.loads(json.dumps(before[-1][2]))  # as a checkpoint keeps it
    after = global_steps(sources, 25 - cut, world_size=1, micro_batch_size=2, cursor=cursor)
    assert before + after == whole
    taken = Counter((name, i) for _, rows, _ in whole for name, samples in rows for i in samples)
    for name, samples in (("a", 87), ("b", 23)):
        counts = [taken[name, i] for i in range(samples)]
        assert max(counts) - min(counts) <= 1, "never a second time before all had their first"


class Echo(Dataset):
    def __getitem__(self, spec: StepSpec) -> StepSpec:
        return spec


def test_cursor_travels_with_its_step_through_prefetching_workers():
    sources = {"a": source("a", 87)}
    direct = list(islice(iter(steps(sources)), 12))
    loader = DataLoader(Echo(), batch_size=None, sampler=steps(sources), num_workers=2, prefetch_factor=3)
    for got, expected in zip(loader, direct, strict=False):
        assert got.step == expected.step and got.cursor == expected.cursor  # workers are many steps ahead by now


def test_sampler_starts_anew_at_its_cursor_every_time():
    sampler = steps({"a": source("a", 87)}, cursor={"step": 3, "rows": 12, "sources": {"a": [0, 1, 2]}})
    first, again = (list(islice(iter(sampler), 3)) for _ in range(2))
    assert first[0].step == 3 and [s.cursor for s in first] == [s.cursor for s in again]


def test_mixture_has_its_ratios_and_is_reproducible():
    sources = {"a": source("a", 300, weight=5.0), "b": source("b", 60, weight=1.0), "c": source("c", 90, weight=4.0)}
    joined = global_steps(sources, 1500)
    drawn = [name for _, rows, _ in joined for name, _ in rows]
    for name, share in (("a", 0.5), ("b", 0.1), ("c", 0.4)):
        deviation = np.sqrt(share * (1 - share) / len(drawn))
        assert abs(drawn.count(name) / len(drawn) - share) < 4 * deviation
    pairs = sum(x == y for x, y in pairwise(drawn)) / len(drawn)
    assert abs(pairs - 0.42) < 0.03, "one draw says nothing about the next"
    assert global_steps(sources, 1500) == joined


def test_finished_source_leaves_its_share_to_the_others_and_the_end_is_common():
    sources = {
        "a": source("a", 87, weight=1.0, max_epochs=4),
        "b": source("b", 33, weight=8.0, max_epochs=2),
        "c": source("c", 50, weight=1.0, max_epochs=3),
    }
    joined = global_steps(sources, None, world_size=2)
    taken = Counter((name, i) for _, rows, _ in joined for name, samples in rows for i in samples)
    expected = {("a", i): 4 for i in range(87)} | {("b", i): 2 for i in range(33)} | {("c", i): 3 for i in range(50)}
    assert taken == expected
    names = [name for _, rows, _ in joined for name, samples in rows if samples]
    last_b = max(i for i, name in enumerate(names) if name == "b")
    last_c = max(i for i, name in enumerate(names) if name == "c")
    between = names[last_b + 1 : last_c]
    assert len(between) > 60 and abs(between.count("a") / len(between) - 0.5) < 0.25
    assert joined[-1][2]["rows"] == len(names)


def test_orders_of_sources_are_independent():
    """A source added to a mixture changes which rows are next, not the order within the others."""
    alone = [s for _, rows, _ in global_steps({"a": source("a", 87)}, 20) for _, s in rows]
    mixed = global_steps({"b": source("b", 23), "a": source("a", 87)}, 20)
    of_a = [s for _, rows, _ in mixed for name, s in rows if name == "a"]
    assert of_a == alone[: len(of_a)]


def test_uneven_shares_are_refused():
    with pytest.raises(
        ValueError, match=r"data\.global_batch_size=4 is not a multiple of data\.micro_batch_size=1 x 3"
    ):
        RankShare(4, 1, 0, 3)


def test_weights_that_move_are_a_function_of_the_row_and_resume_exactly():
    """From 9 rows of 10 to 1 of 10 over 200 steps of 4 rows, then constant."""

    def sampler(cursor=None, rank=0, world_size=1):
        sources = {"mono": replace(source("mono", 87, 9.0), final_weight=1.0), "dialogue": source("dialogue", 60)}
        sources["dialogue"] = replace(sources["dialogue"], final_weight=9.0)
        return StepSampler(sources, RankShare(4, 1, rank, world_size), 1, cursor, mix_steps=200)

    taken = list(islice(iter(sampler()), 500))
    shares = [
        np.mean([row.source == "mono" for spec in taken[first : first + 100] for row in spec.rows])
        for first in range(0, 500, 100)
    ]
    # means of the weights over each hundred steps; 400 draws each
    for share, expected in zip(shares, [0.7, 0.3, 0.1, 0.1, 0.1], strict=True):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5, shares
    for step in (50, 199, 300):
        again = next(iter(sampler(cursor=taken[step - 1].cursor)))
        for first, second in zip(again.rows, taken[step].rows, strict=True):
            assert (first.source, first.samples.tolist()) == (second.source, second.samples.tolist())
        assert again.cursor == taken[step].cursor
    ranks = [next(islice(iter(sampler(None, rank, 2)), 120, None)) for rank in (0, 1)]
    assert sorted((row.index, row.source) for spec in ranks for row in spec.rows) == [
        (row.index, row.source) for row in taken[120].rows
    ]
