"""Takedown: training, lengths and verify see exactly the remaining samples; shards are not changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_recordings import files

import data_prep.dataset.takedown
from csm.config import DataConfig, LossConfig
from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.data.plan import EpochPlan
from csm.data.rows import TrainRows
from csm.data.stream import MixtureSource, RankShare, StepSampler
from csm.text import ByteTokenizer
from data_prep.dataset.rebuild import rebuild
from data_prep.dataset.takedown import read_names, takedown
from data_prep.dataset.verify import verify
from tests.data.made_datasets import made_sample, write_dataset

TOKENIZER = ByteTokenizer()


@pytest.fixture
def folder(tmp_path) -> Path:
    """180 samples of 90 recordings of 18 groups, the last two of which are validation, in about ten shards."""
    samples = []
    for i in range(180):
        sample = made_sample(i, "val" if i >= 160 else "train")
        sample.recording, sample.group = f"made/{i // 2}", f"show {i // 10}"
        samples.append(sample)
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        one.next, other.prev = other.key, one.key
    return write_dataset(tmp_path / "data", samples, shard_bytes=10_000)


def number(key: str) -> int:
    return int(key.split("-")[1])


def keys_trained_on(folder: Path, epochs: int = 2) -> dict[str, int]:
    """How often each sample is trained on, from the dataset to the rows' texts."""
    dataset = ShardedDataset(folder)
    lengths = load_lengths(dataset, TOKENIZER, folder)
    plan = EpochPlan("data", dataset.shards("train"), lengths, 400, 3, seed=1)
    sampler = StepSampler({"data": MixtureSource(plan, max_epochs=epochs)}, RankShare(2, 2, 0, 1), 1, None)
    data = DataConfig(max_seq_len=400, global_batch_size=2, micro_batch_size=2)
    rows = TrainRows({"data": dataset}, TOKENIZER, data, LossConfig(), seed=1)
    counts: dict[str, int] = {}
    for spec in sampler:
        for row in spec.rows:
            for i in row.samples.tolist():
                counts[dataset.key(i)] = counts.get(dataset.key(i), 0) + 1
        assert rows[spec].positions > 0
    return counts


def test_training_sees_exactly_the_rest(folder):
    before = ShardedDataset(folder)
    lengths = dict(zip(before.column("key"), load_lengths(before, TOKENIZER, folder).T.tolist(), strict=True))
    samples = {key: before.read(i) for i, key in enumerate(before.column("key"))}
    tars = {name: data for name, data in files(folder).items() if name.endswith(".tar")}

    taken = takedown(folder, ["made/3", "show 7", "made/71"])

    gone = {i for i in range(180) if i // 2 in (3, 71) or i // 10 == 7}
    after = ShardedDataset(folder)
    assert taken.samples == 14 == len(gone) and len(after) == 166
    assert [number(key) for key in after.column("key")] == [
        number(key) for key in before.column("key") if number(key) not in gone
    ]
    for i, key in enumerate(after.column("key")):
        read = after.read(i)
        assert np.array_equal(read.codes, samples[key].codes) and read.turns == samples[key].turns
    assert after.info.fingerprint == taken.dataset.fingerprint != before.info.fingerprint
    assert not list(folder.glob(f"lengths-{before.info.fingerprint}*")), "what was measured before says nothing now"
    measured = load_lengths(after, TOKENIZER, folder).T.tolist()
    assert measured == [lengths[key] for key in after.column("key")]
    assert {number(key): n for key, n in keys_trained_on(folder).items()} == {i: 2 for i in range(160) if i not in gone}
    assert sorted(number(after.key(int(i))) for i in after.select("val")) == sorted(set(range(160, 180)) - gone)
    assert {name: data for name, data in files(folder).items() if name.endswith(".tar")} == tars
    assert verify(folder, workers=1) == []
    totals = after.info.totals
    assert totals["train"]["samples"] + totals["val"]["samples"] == 166
    assert sum(t["frames"] for t in totals.values()) == after.column("n_frames").sum()


def test_repeating_changes_nothing_and_order_makes_no_difference(folder):
    takedown(folder, ["show 7"])
    takedown(folder, ["made/3"])
    once = files(folder)
    for names in (["show 7", "made/3"], ["made/38"]):  # a recording of show 7
        assert takedown(folder, names).samples == 0
        assert files(folder) == once
    assert sum(name.endswith(".parquet") for name in once) == 1


def test_order_of_takedowns_makes_no_difference(folder, tmp_path):
    names = ["show 7", "made/3"]
    one = takedown(folder, names).dataset
    other = write_dataset(tmp_path / "again", [made_sample(0)])
    for file in other.iterdir():
        file.unlink()
    for name, data in files(folder).items():
        if name.endswith(".tar"):
            (other / name).write_bytes(data)
    rebuild(other, workers=1)
    for name in reversed(names):
        two = takedown(other, [name]).dataset
    assert two.fingerprint == one.fingerprint and two.index == one.index


def test_unknown_names_are_named_and_nothing_is_done(folder):
    before = files(folder)
    with pytest.raises(ValueError, match=r"no recording or group named 'made/90', 'shwo 7'; nothing was taken down"):
        takedown(folder, ["made/3", "made/90", "show 7", "shwo 7"])
    assert files(folder) == before


@pytest.mark.parametrize("step", ["write_index", "write_dataset_json"])
def test_interrupted_takedown_is_finished_by_repeating_it(folder, monkeypatch, step):
    names = ["show 7", "show 17"]

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data_prep.dataset.takedown, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            takedown(folder, names)
    assert len(ShardedDataset(folder)) == 180, "unchanged"
    (problem,) = verify(folder, workers=1)
    assert "takedown.jsonl: lists other samples than dataset.json says; repeat the takedown" in problem
    assert takedown(folder, names[:1]).samples == 20, "also what the interrupted one was asked for"
    assert verify(folder, workers=1) == [] and len(ShardedDataset(folder)) == 160


def test_an_entire_split_can_be_taken_down(folder):
    takedown(folder, ["show 16", "show 17"])
    dataset = ShardedDataset(folder)
    assert len(dataset.select("val")) == 0 and list(dataset.info.totals) == ["train"]
    assert verify(folder, workers=1) == []
    assert len(keys_trained_on(folder, 1)) == 160
    takedown(folder, [f"show {i}" for i in range(16)])
    assert len(ShardedDataset(folder)) == 0 and verify(folder, workers=1) == []


def test_index_made_again_leaves_out_what_was_taken_down(folder):
    takedown(folder, ["made/3", "show 7"])
    before = files(folder)
    (folder / ShardedDataset(folder).info.index.name).unlink()
    rebuild(folder, workers=1)
    assert files(folder) == before
    (folder / "dataset.json").unlink()
    rebuild(folder, workers=1)
    assert len(ShardedDataset(folder)) == 168 and verify(folder, workers=1) == []


def test_verify_sees_a_changed_list(folder):
    takedown(folder, ["made/3"])
    file = folder / "takedown.jsonl"
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["recording"], first["group"]) == ("made/3", "show 0") and {first["key"], second["key"]} == {
        "made-00006",
        "made-00007",
    }
    file.write_text(json.dumps(first) + "\n")
    list_changed, sample = verify(folder, workers=1)
    assert list_changed.startswith(f"{file}: lists other samples than dataset.json says")
    assert f"sample {second['key']}: not in the index" in sample
    file.unlink()
    assert any(problem.startswith(f"{file}: missing") for problem in verify(folder, workers=1))


def test_names_with_unicode_line_separators_are_taken_down_and_stay_readable(folder, tmp_path):
    """U+2028, U+0085 and form feeds are legal in JSON strings; only a line feed ends a line."""
    samples = [made_sample(i) for i in range(6)]
    for i, sample in enumerate(samples):
        sample.recording = f"made/part{chr(0x2028)}{i // 2}{chr(0x85)}x"
    data = write_dataset(tmp_path / "odd", samples, shard_bytes=10_000)
    (tmp_path / "names.txt").write_text(samples[0].recording + "\n", encoding="utf-8")
    names = read_names(tmp_path / "names.txt")
    assert names == [samples[0].recording] and takedown(data, names).samples == 2
    assert takedown(data, [samples[2].recording]).samples == 2
    assert verify(data) == []


def test_list_of_names_is_read_from_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("made/3\n\n  show 7 \n")
    assert read_names(file) == ["made/3", "show 7"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="names no recordings or groups"):
        read_names(file)
