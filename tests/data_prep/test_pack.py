"""Packing: the same bytes for any units and workers, and memory for columns, not for objects."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from made_recordings import files

from csm.codec import check_same_codec
from csm.data.dataset import ShardedDataset
from csm.data.sample import Event, Sample
from data_prep.dataset.rebuild import rebuild
from data_prep.dataset.verify import verify
from data_prep.packing.shards import plan_shards, write_shards
from data_prep.packing.staging import StagedUnit
from tests.data.made_datasets import CODEC, made_sample, write_dataset


def made_samples() -> list[Sample]:
    """Of two sources and two splits, with all that a sample may say."""
    samples = [made_sample(i, "train" if i % 5 else "val", source="ab"[i % 2]) for i in range(240)]
    for i, sample in enumerate(samples):
        sample.lang, sample.licence = ("en", "cc0") if i % 3 else ("de", "cc-by-4.0")
        sample.turns[0].quality = {"ovrl": round(1 + i / 60, 3)} if i % 4 else {}
        sample.turns[0].words = [["turn", 0.0, 0.4, 0.9], ["0", 0.5, 0.9, None]]
        sample.turns[-1].loss = i % 7 > 0
        sample.events = [Event(0.5, 1, "backchannel", "mhm “ja”")]
    return samples


@pytest.mark.slow
def test_shards_and_index_are_the_same_for_any_units_and_workers(tmp_path):
    samples = made_samples()
    expected = files(write_dataset(tmp_path / "1", samples, name="both"))
    assert sum(name.endswith(".tar") for name in expected) > 6
    for workers, units in ((2, 7), (4, 240)):
        found = files(write_dataset(tmp_path / f"{workers}", samples[::-1], 20_000, units, workers, name="both"))
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"dataset.json"}:
            assert found[name] == expected[name], name
        description, again = (json.loads(f["dataset.json"]) for f in (expected, found))
        assert {**again, "audio_root": ""} == {**description, "audio_root": ""}
        assert verify(tmp_path / f"{workers}", workers=1) == []


def test_every_sample_comes_back_and_plain_webdataset_reads_it(tmp_path):
    samples = {sample.key: sample for sample in made_samples()}
    dataset = ShardedDataset(write_dataset(tmp_path / "data", list(samples.values())))
    urls = [str(dataset.local_path / shard.name) for shard in dataset.info.shards]
    streamed = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [item["__key__"] for item in streamed] == dataset.column("key").tolist()
    assert sorted(dataset.column("key")) == sorted(samples)
    for i, item in enumerate(streamed):
        read, given = dataset.read(i), samples[item["__key__"]]
        assert np.array_equal(item["codes.npy"], given.codes) and np.array_equal(read.codes, given.codes)
        assert {**vars(read), "codes": 0} == {**vars(given), "codes": 0}
        assert item["json"]["num_frames"] == given.num_frames and item["json"]["turns"][0]["words"][1][3] is None


def test_index_describes_the_samples(tmp_path):
    dataset = ShardedDataset(write_dataset(tmp_path / "data", made_samples()))
    for i in range(len(dataset)):
        sample = dataset.read(i)
        names = ("source", "lang", "licence", "group")
        assert [dataset.column(name)[i] for name in names] == [getattr(sample, name) for name in names]
        assert dataset.column("n_speakers")[i] == len({turn.speaker for turn in sample.turns})
        assert dataset.column("loss_frames")[i] == sum(turn.num_frames for turn in sample.turns if turn.loss)
        expected = sample.turns[0].quality.get("ovrl", np.nan)
        np.testing.assert_allclose(dataset.column("quality")[i], expected, rtol=1e-6)
    info = dataset.info
    assert {name: totals["samples"] for name, totals in info.sources.items()} == {"a": 120, "b": 120}
    assert {name: totals["samples"] for name, totals in info.langs.items()} == {"de": 80, "en": 160}
    assert info.licences["cc-by-4.0"] == info.langs["de"]
    for parts in (info.totals, info.sources, info.langs, info.licences):
        for name, column in (("frames", "n_frames"), ("turns", "n_turns")):
            assert sum(totals[name] for totals in parts.values()) == dataset.column(column).sum()


def test_shards_are_closed_at_their_size_and_shuffled_by_the_seed(tmp_path):
    samples = [made_sample(i) for i in range(150)]
    dataset = ShardedDataset(write_dataset(tmp_path / "data", samples, shard_bytes=9000))
    sizes = dataset.column("codes_size") + dataset.column("json_size")
    shards = [sizes[dataset.column("shard") == number] for number in range(len(dataset.info.shards))]
    assert len(shards) > 5
    for shard in shards[:-1]:
        assert shard.sum() >= 9000 > shard[:-1].sum()
    order = [int(key.split("-")[1]) for key in dataset.column("key")]
    assert abs(np.corrcoef(order, range(150))[0, 1]) < 0.25  # 3 standard deviations of chance
    names, orders = set(), set()
    for seed in (1, 2):
        folder = tmp_path / f"seed-{seed}"
        staging = folder / "staging"
        staging.mkdir(parents=True)
        with StagedUnit(staging, "all") as unit:
            for sample in samples:
                unit.add(sample)
        shards, _ = write_shards(staging, folder, "made", 9000, seed, workers=1)
        names |= {shard.name for shard in shards}
        orders.add((folder / shards[0].name).read_bytes())
    assert len(orders) == 2 and not names & {shard.name for shard in dataset.info.shards}


def test_one_key_for_two_samples_is_refused(tmp_path):
    samples = [made_sample(i) for i in range(20)]
    samples.append(replace(samples[3], split="val"))
    with pytest.raises(ValueError, match="1 samples have the key of another one, the first in unit unit-0 and unit-3"):
        write_dataset(tmp_path / "data", samples, units=4)
    with pytest.raises(ValueError, match="no conversations, so there is nothing to pack"):
        (tmp_path / "empty").mkdir()
        write_shards(tmp_path / "empty", tmp_path, "made", 1000, 0, 1)


def test_planning_holds_columns_not_objects(tmp_path):
    """Peak allocation of Python and numpy for 15,000 samples; an object for each would take over 1000 bytes."""
    count = 15_000
    sample = made_sample(0)
    with StagedUnit(tmp_path, "all") as unit:
        for i in range(count):
            sample.key = f"made-{i:06d}"
            unit.add(sample)
    tracemalloc.start()
    shards = plan_shards(tmp_path, tmp_path, "made", 1_000_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(shard.unit) for shard in shards) == count and len(shards) > 10
    assert peak < 2e6 + 200 * count, f"{peak / count} bytes a sample"


@pytest.mark.parametrize("described", [True, False])
def test_index_made_again_is_the_one_that_packing_made(tmp_path, described):
    folder = write_dataset(tmp_path / "data", made_samples())
    before = files(folder)
    (folder / "index.parquet").unlink()
    if not described:
        (folder / "dataset.json").unlink()
    info = rebuild(folder, workers=1)
    check_same_codec(info.codec, CODEC, "rebuilt")
    after = files(folder)
    assert after["index.parquet"] == before["index.parquet"]
    if described:
        assert after == before
    else:
        lost = {"audio_root": ""}
        assert json.loads(after["dataset.json"]) == json.loads(before["dataset.json"]) | lost
    assert verify(folder, workers=1) == []


def test_index_is_not_made_of_damaged_shards(tmp_path):
    folder = write_dataset(tmp_path / "data", made_samples())
    shard: Path = sorted(folder.glob("*.tar"))[2]
    whole = shard.read_bytes()
    text = whole.index(b"turn 0 of")
    shard.write_bytes(whole[:text] + b"T" + whole[text + 1 :])
    with pytest.raises(ValueError, match=f"{shard}: content differs from its hash in dataset.json"):
        rebuild(folder, workers=1)
    shard.write_bytes(whole[:-5000])
    with pytest.raises(ValueError, match=f"{shard}: cut short"):
        rebuild(folder, workers=1)
    (folder / "dataset.json").unlink()
    with pytest.raises(ValueError, match=f"{shard}"):
        rebuild(folder, workers=1)
    with pytest.raises(FileNotFoundError, match="holds no shards"):
        rebuild(tmp_path)
