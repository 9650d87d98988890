import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csm.config import CodecConfig, CodecKind
from csm.data.dataset import ShardedDataset
from csm.data.index import INDEX_SCHEMA, footer_sha256, write_index_file
from tests.data.made_datasets import made_dataset


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The demo recordings with a small codec, in several tiny shards."""
    from data_prep.config import DataPrepConfig, PackConfig, ReportConfig
    from data_prep.demo import prepare_demo_dataset

    output = tmp_path_factory.mktemp("data") / "demo"
    codec = CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23)
    prepare_demo_dataset(
        DataPrepConfig(output=str(output), codec=codec, pack=PackConfig(shard_mb=0.008), report=ReportConfig(0))
    )
    return output


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "demo"))


def test_webdataset_reads_the_same_samples_as_the_index(prepared):
    import webdataset as wds

    dataset = ShardedDataset(prepared)
    assert len(dataset.info.shards) > 3
    urls = [str(prepared / shard.name) for shard in dataset.info.shards]
    streamed = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [item["__key__"] for item in streamed] == list(dataset.column("key"))
    for i, item in enumerate(streamed):
        sample = dataset.read(i)
        assert item["codes.npy"].dtype == np.uint16
        assert np.array_equal(item["codes.npy"], sample.codes)
        assert [turn["text"] for turn in item["json"]["turns"]] == [turn.text for turn in sample.turns]


def test_index_columns_describe_the_samples(prepared):
    dataset = ShardedDataset(prepared)
    train, val = dataset.select("train"), dataset.select("val")
    assert train.dtype == np.int64 and len(val) == 3
    assert sorted([*train, *val]) == list(range(len(dataset)))
    assert len(dataset.select("test")) == 0
    for i in range(len(dataset)):
        sample = dataset.read(i)
        expected = {
            "split": sample.split,
            "recording": sample.recording,
            "n_frames": sample.codes.shape[1],
            "n_turns": len(sample.turns),
            "text_bytes": sum(len(turn.text.encode()) for turn in sample.turns),
        }
        assert {name: dataset.column(name)[i] for name in expected} == expected
        assert dataset.audio_path(sample).is_file()
    assert dataset.hours == pytest.approx(dataset.column("n_frames").sum() * 0.08 / 3600)
    assert dataset.codec_file == prepared / "codec.safetensors"


def test_reads_in_forked_workers_and_after_pickling(prepared):
    dataset = ShardedDataset(prepared)
    expected = [dataset.read(i).codes for i in range(len(dataset))]  # leaves shards open in this process

    class Codes(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, i: int) -> np.ndarray:
            return dataset.read(i).codes

    loader = torch.utils.data.DataLoader(Codes(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for codes, want in zip(loader, expected, strict=True):
        assert np.array_equal(codes, want)
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.read(7).codes, expected[7])


def test_folder_that_is_no_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a prepared dataset .*python -m data_prep input=MANIFEST"):
        ShardedDataset(tmp_path)


def test_shard_cut_short_is_named(folder):
    shard = sorted(folder.glob("*.tar"))[1]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size - 513])
    with pytest.raises(ValueError) as error:
        ShardedDataset(folder)
    assert str(error.value).startswith(f"{shard}: cut short ({size - 513} bytes of {size}); restore it, or prepare")


def test_missing_file_is_named(folder):
    shard = sorted(folder.glob("*.tar"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard}: missing"):
        ShardedDataset(folder)


def test_files_that_dataset_json_does_not_name_are_not_read(folder):
    shutil.copy(sorted(folder.glob("*.tar"))[0], folder / "stray-train-000099.tar")
    assert len(ShardedDataset(folder)) == 25


def test_damaged_index_is_refused_wherever_it_is_damaged(folder):
    """One byte anywhere: an error that names the index, when opened or when the place is read; never other values."""
    index = folder / "index.parquet"
    whole = index.read_bytes()
    expected = contents(folder)
    rejected = 0
    for place in range(3, len(whole), len(whole) // 97):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        index.write_bytes(damaged)
        try:
            found = contents(folder)
        except ValueError as error:
            assert str(error).startswith(f"{index}: ") and "restore it, or prepare" in str(error)
            rejected += 1
        else:
            assert found == expected  # such as in the name of the program that wrote the file
    assert rejected > 60


def contents(folder: Path) -> list:
    dataset = ShardedDataset(folder)
    columns = [dataset.column(name) for name in ("key", "recording", "split", "shard", "n_frames", "n_turns")]
    return [column.tolist() for column in columns] + [dataset.read(i).codes.tolist() for i in range(len(dataset))]


def test_index_of_another_dataset_is_refused(folder, tmp_path):
    other = made_dataset(tmp_path / "other", 50)
    index = folder / "index.parquet"
    shutil.copy(other / "index.parquet", index)
    description = json.loads((folder / "dataset.json").read_text())
    description["index"]["size"] = index.stat().st_size
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"{index}: damaged, or not the index that"):
        ShardedDataset(folder)


def test_shard_of_two_splits_is_refused(tmp_path):
    folder = made_dataset(tmp_path / "data", 40)
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    rows[7]["split"] = "val"
    index = folder / "index.parquet"
    write_index_file(index, [pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)])
    description = json.loads((folder / "dataset.json").read_text())
    description["index"] |= {"size": index.stat().st_size, "footer_sha256": footer_sha256(index)}
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"{index}: .*shard 0 holds samples of more than one split"):
        ShardedDataset(folder)


def test_index_of_many_row_groups_reads_as_one(tmp_path, monkeypatch):
    """Groups of a few rows, of which only a few are kept at hand."""
    monkeypatch.setattr("csm.data.index._ROW_GROUP", 50)
    monkeypatch.setattr("csm.data.index._CACHED_ROWS", 120)
    dataset = ShardedDataset(made_dataset(tmp_path / "data", 300, 60))
    assert pq.ParquetFile(tmp_path / "data" / "index.parquet").num_row_groups > 4
    assert len(dataset) == 360 and len(dataset.info.shards) > 8
    order = np.random.default_rng(0).permutation(360)
    assert [dataset.read(int(i)).key for i in order] == dataset.column("key")[order].tolist()
    for split in ("train", "val"):
        assert dataset.select(split).tolist() == np.flatnonzero(dataset.column("split") == split).tolist()
        for first, count in dataset.shards(split):
            assert len(set(dataset.column("shard")[first : first + count])) == 1


def test_dataset_of_a_later_version_is_refused(folder):
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match=f"{file}: .*schema version 99, this program reads 2 and 3"):
        ShardedDataset(folder)


def test_damaged_sample_is_named_when_read(folder):
    dataset = ShardedDataset(folder)
    shard = folder / dataset.info.shards[0].name
    data = shard.read_bytes()
    codes = data.index(dataset.read(0).codes.tobytes())
    shard.write_bytes(data[:codes] + b"\xff\xff" + data[codes + 2 :])
    key = dataset.column("key")[0]
    with pytest.raises(ValueError, match=rf"{shard}, sample {key}: code 65535 is out of range.*codes 0\.\.22"):
        dataset.read(0)
