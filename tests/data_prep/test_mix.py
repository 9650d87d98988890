"""A mixture file is readable by training, and its figures match the stream."""

from __future__ import annotations

from dataclasses import replace

import pytest

from csm.compose import TRAIN
from csm.data.sources import open_sources
from data_prep.dataset.mix import describe, mix
from tests.data.made_datasets import CODEC, made_dataset, made_sample, write_dataset


def test_training_reads_the_file_as_its_data_option(tmp_path):
    calls, books = made_dataset(tmp_path / "calls", 60, 10), made_dataset(tmp_path / "books", 20)
    again = made_dataset(tmp_path / "more" / "calls", 30)
    (tmp_path / "config" / "data").mkdir(parents=True)
    output = tmp_path / "config" / "data" / "talk.yaml"
    parts = mix({str(calls): 3, f"{books}/": 1, str(again): 0.5}, output)
    assert list(parts) == ["calls", "books", "calls-2"]
    searchpath = f"hydra.searchpath=[file://{tmp_path / 'config'}]"
    data = TRAIN.options(TRAIN.compose([searchpath, "experiment=quickstart", "data=talk"])).data
    sources = open_sources(data)
    assert {name: source.weight for name, source in sources.items()} == {"calls": 3, "books": 1, "calls-2": 0.5}
    assert [source.dataset.local_path for source in sources.values()] == [calls, books, again]
    for name, source in sources.items():
        assert parts[name].hours == pytest.approx(source.dataset.info.totals["train"]["hours"], abs=1e-6)


def test_epochs_are_counted_until_every_dataset_was_seen_in_full(tmp_path):
    samples = [made_sample(i) for i in range(80)]
    large = write_dataset(tmp_path / "large", samples)
    small = write_dataset(tmp_path / "small", samples[:40])
    parts = mix({str(large): 1, str(small): 3}, tmp_path / "mix.yaml")
    ratio = parts["large"].hours / parts["small"].hours
    assert parts["large"].share == 0.25 and parts["large"].epochs == 1.0
    assert parts["small"].epochs == pytest.approx(3 * ratio)
    text = describe(parts)
    assert f"{parts['small'].epochs:.2f} epochs" in text and "weight 3 (75.0 % of the rows)" in text
    total = sum(part.hours * part.epochs for part in parts.values())
    assert total == pytest.approx(4 * parts["large"].hours)  # one of its hours in four
    assert text.splitlines()[-1] == f"every dataset has been seen in full after {total:.3f} hours"


def test_mixtures_that_make_no_sense_are_refused(tmp_path):
    one = made_dataset(tmp_path / "one", 20)
    other = write_dataset(tmp_path / "other", [made_sample(1, codec=replace(CODEC, weights_hash="f" * 16))])
    val = made_dataset(tmp_path / "val", 0, 20)
    output = tmp_path / "mix.yaml"
    mistakes = {
        "data.sources one and other: made with different codecs": {str(one): 1, str(other): 1},
        "data.sources.one.weight=0.0 must be greater than 0": {str(one): 0},
        "val: has nothing in split train; remove it": {str(one): 1, str(val): 1},
        "nowhere: not a prepared dataset": {str(tmp_path / "nowhere"): 1},
        "weights is not set": {},
    }
    for message, weights in mistakes.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            mix(weights, output)
    assert not output.exists()
    mix({str(one): 1}, output)
    with pytest.raises(ValueError, match="exists already; add overwrite=true"):
        mix({str(one): 1}, output)
    mix({str(one): 2}, output, overwrite=True)
    with pytest.raises(ValueError, match=r"must end in \.yaml"):
        mix({str(one): 1}, tmp_path / "mix")
