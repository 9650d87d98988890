"""Each kind of damage is named, with its place, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csm.data.dataset import ShardedDataset, fingerprint
from csm.data.index import INDEX_SCHEMA, footer_sha256, write_index_file
from csm.files import sha256_of
from data_prep.dataset.index import file_info, totals_of, write_index
from data_prep.dataset.shard import index_shard
from data_prep.dataset.verify import verify
from tests.data.made_datasets import CODEC, made_sample, write_dataset


@pytest.fixture
def folder(tmp_path) -> Path:
    """80 samples in pairs of one recording, in several shards of two splits."""
    samples = [made_sample(i, "val" if i >= 60 else "train") for i in range(80)]
    for one, other in zip(samples[::2], samples[1::2], strict=True):
        other.recording = other.group = one.group
        one.next, other.prev = other.key, one.key
    return write_dataset(tmp_path / "data", samples, shard_bytes=8000)


def change(folder: Path, update: Callable[[dict[str, Any]], None]) -> None:
    """Changes dataset.json."""
    file = folder / "dataset.json"
    values = json.loads(file.read_text())
    update(values)
    file.write_text(json.dumps(values))


def patch(folder: Path, sample: int, old: bytes, new: bytes, bless: bool = True) -> tuple[Path, str]:
    """Replaces bytes of a sample in its shard (whose hash is then set right, as a bad program would): shard, key."""
    dataset = ShardedDataset(folder)
    key, number = dataset.key(sample), int(dataset.column("shard")[sample])
    shard = folder / dataset.info.shards[number].name
    start = int(dataset.column("codes_offset")[sample])
    end = int(dataset.column("json_offset")[sample] + dataset.column("json_size")[sample])
    data = shard.read_bytes()
    assert len(old) == len(new) and old in data[start:end]
    shard.write_bytes(data[:start] + data[start:end].replace(old, new, 1) + data[end:])
    if bless:
        set_right(folder, number)
    return shard, key


def set_right(folder: Path, number: int) -> None:
    def update(values: dict[str, Any]) -> None:
        values["shards"][number]["sha256"] = sha256_of(folder / values["shards"][number]["name"])
        values["fingerprint"] = fingerprint([file_like(shard) for shard in values["shards"]], None)

    change(folder, update)


def file_like(shard: dict[str, Any]) -> Any:
    return type("Shard", (), shard)


def rewrite_index(folder: Path, update: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes rows of the index; dataset.json is set right but for its totals."""
    index = folder / "index.parquet"
    rows = pq.read_table(index).to_pylist()
    update(rows)
    write_index_file(index, [pa.Table.from_pylist(rows, INDEX_SCHEMA)])
    counts = np.bincount([row["shard"] for row in rows])

    def describe(values: dict[str, Any]) -> None:
        values["index"] = vars(file_info(index)) | {"footer_sha256": footer_sha256(index)}
        for shard, count in zip(values["shards"], counts, strict=True):
            shard["samples"] = int(count)
        values.update(totals_of(index, CODEC.frame_rate))

    change(folder, describe)


def only(problems: list[str], *patterns: str) -> None:
    assert len(problems) == len(patterns), problems
    for problem, pattern in zip(problems, patterns, strict=True):
        assert re.search(pattern, problem), problem
        assert "\n" not in problem


def test_undamaged_dataset_has_no_problems(folder):
    assert verify(folder, workers=1) == verify(folder, workers=2) == []


def test_changed_bytes(folder):
    shard, _ = patch(folder, 3, b"turn 0 of", b"turn O of", bless=False)
    only(verify(folder, workers=2), rf"^{shard}: content differs from its hash in dataset\.json$")


def test_code_out_of_range(folder):
    codes = ShardedDataset(folder).read(5).codes.tobytes()
    shard, key = patch(folder, 5, codes, b"\x17\x00" + codes[2:])
    only(verify(folder, workers=1), f"^{shard}, sample {key}: code 23 is out of range: spectral has codes 0..22")


def test_end_of_speech_inside_a_turn(folder):
    sample = ShardedDataset(folder).read(7)
    silent = sample.codes.copy()
    silent[:, 1] = 0
    shard, key = patch(folder, 7, sample.codes.tobytes(), silent.tobytes())
    only(verify(folder, workers=1), f"^{shard}, sample {key}: frame 1 is all zeros, which means end of speech")


def test_frames_that_are_not_contiguous(folder):
    dataset = ShardedDataset(folder)
    number = next(i for i in range(80) if len(dataset.read(i).turns) > 1 and dataset.read(i).turns[1].start_frame > 10)
    second = dataset.read(number).turns[1]
    old, new = (f'"start_frame":{second.start_frame - by},'.encode() for by in (0, 1))
    shard, key = patch(folder, number, old, new)
    only(
        verify(folder, workers=1),
        rf"^{shard}, sample {key}: turn 1 has frames {second.start_frame - 1}\+{second.num_frames}, expected",
    )


def test_record_that_contradicts_its_codes(folder):
    frames = ShardedDataset(folder).read(2).num_frames
    old, new = (f'"num_frames":{n:02},'.encode() for n in (frames, 99 - frames))
    shard, key = patch(folder, 2, old, new)
    only(verify(folder, workers=1), f"^{shard}, sample {key}: says num_frames {99 - frames}, its turns say {frames}")


def test_truncated_tar_of_the_right_size(folder):
    shard = folder / ShardedDataset(folder).info.shards[1].name
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))
    problems = verify(folder, workers=1)
    assert problems[0] == f"{shard}: content differs from its hash in dataset.json"
    assert all(problem.startswith(f"{shard}") for problem in problems) and len(problems) > 1


def test_index_that_says_something_else(folder):
    def update(rows: list[dict[str, Any]]) -> None:
        rows[4]["n_frames"] += 1
        rows[4]["lang"] = "de"
        rows[9]["json_offset"] += 512

    rewrite_index(folder, update)
    keys = ShardedDataset(folder).column("key")
    only(
        verify(folder, workers=1),
        f"sample {keys[4]}: the index has another lang, n_frames$",
        f"sample {keys[9]}: the index has another json_offset$",
    )


def test_sample_missing_from_the_index_or_from_the_shard(folder):
    keys = ShardedDataset(folder).column("key")

    def update(rows: list[dict[str, Any]]) -> None:
        del rows[6]
        rows[0] = rows[0] | {"key": "made-99999"}

    rewrite_index(folder, update)
    only(
        verify(folder, workers=1)[:3],
        f"sample {keys[0]}: not in the index, or a duplicate",
        f"sample {keys[6]}: not in the index, or a duplicate",
        "sample made-99999: missing from the tar",
    )


def test_damaged_index(folder):
    index = folder / "index.parquet"
    data = bytearray(index.read_bytes())
    data[600] ^= 1
    index.write_bytes(data)
    only(verify(folder, workers=1), rf"^{index}: content differs from its hash .*python -m data_prep index output=")


def test_keys_that_occur_twice(folder):
    """A shard that is named under a second name as well."""
    info = ShardedDataset(folder).info
    copy = folder / "copy.tar"
    shutil.copy(folder / info.shards[0].name, copy)
    paths = [*(folder / shard.name for shard in info.shards), copy]
    shards = [index_shard(path) for path in paths]
    index = write_index(folder, [shard.numbered(number) for number, shard in enumerate(shards)], None)

    def update(values: dict[str, Any]) -> None:
        values["shards"] = [vars(shard.info) for shard in shards]
        values["index"] = vars(index)
        values["fingerprint"] = fingerprint([shard.info for shard in shards], None)
        values.update(totals_of(folder / index.name, CODEC.frame_rate))

    change(folder, update)
    problems = verify(folder, workers=1)
    named = index_shard(copy).table["key"].to_pylist()[:20]
    only(problems[: len(named)], *(f"key {key} occurs more than once" for key in named))


@pytest.mark.parametrize("broken", ["gone", "one-sided"])
def test_links_to_conversations_that_are_not_there(tmp_path, broken):
    samples = [made_sample(i) for i in range(40)]
    samples[8].next = "made-99999" if broken == "gone" else samples[9].key
    folder = write_dataset(tmp_path / "data", samples)
    only(verify(folder, workers=1), "sample made-00008 links to a previous or next conversation that is missing, or")


def test_group_on_both_sides(tmp_path):
    samples = [made_sample(i, "val" if i > 30 else "train") for i in range(40)]
    samples[35].group = samples[3].group = "anna"
    folder = write_dataset(tmp_path / "data", samples)
    only(verify(folder, workers=1), "group 'anna' is in more than one split")


def test_sample_of_another_codec(tmp_path):
    other = made_sample(3, codec=replace(CODEC, weights_hash="f" * 16))
    with pytest.raises(ValueError, match=r"made with different codecs \(weights_hash"):
        write_dataset(tmp_path / "mixed", [made_sample(1), other])
    folder = write_dataset(tmp_path / "data", [made_sample(1)])
    change(folder, lambda values: values["codec"].update(weights_hash="f" * 16))
    only(verify(folder, workers=1), "sample made-00001: made with another codec than the one in dataset.json")


def test_totals_and_fingerprint_of_something_else(folder):
    turns = ShardedDataset(folder).info.totals["val"]["turns"]

    def update(values: dict[str, Any]) -> None:
        values["totals"]["val"]["turns"] += 1
        values["langs"]["xx"] = {"samples": 2, "turns": 0, "frames": 0}
        values["fingerprint"] = "0" * 16

    change(folder, update)
    only(
        verify(folder, workers=1),
        "the fingerprint does not match the shards that it names",
        f"says {turns + 1} turns in split val, the index {turns}",
        "says 2 samples in lang xx, the index 0",
    )
