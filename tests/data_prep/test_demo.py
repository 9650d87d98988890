"""The demo dataset, as `data=demo` of a training prepares it."""

import shutil

import pytest

from csm.config import CodecConfig, CodecKind, TrainConfig
from data_prep.demo import prepare_demo


def test_a_training_without_a_data_folder_is_one_line():
    with pytest.raises(ValueError, match=r"data=demo needs data\.path"):
        prepare_demo(TrainConfig())


def test_a_dataset_that_exists_is_kept(small_dataset, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(small_dataset, folder)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    config = TrainConfig(codec=CodecConfig(kind=CodecKind.spectral, num_codebooks=3, codebook_size=7))
    config.data.path = str(folder)
    prepare_demo(config)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
