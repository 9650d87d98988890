from collections.abc import Callable
from pathlib import Path

import pytest

from csm.config import CodecConfig, CodecKind
from data_prep.config import DataPrepConfig, ExecutorConfig, ExecutorKind


@pytest.fixture(scope="session")
def make_config() -> Callable[..., DataPrepConfig]:
    """`make_config(input, output, **{"group.option": value})`: a small spectral codec, everything in this process."""

    def make(input_path: Path, output: Path, **options) -> DataPrepConfig:
        codec = CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23)
        cfg = DataPrepConfig(input=str(input_path), output=str(output), codec=codec)
        cfg.executor = ExecutorConfig(ExecutorKind.inline)
        cfg.pack.workers = 1
        cfg.report.conversations = 1
        for name, value in options.items():
            *groups, option = name.split(".")
            node = cfg
            for group in groups:
                node = getattr(node, group)
            assert hasattr(node, option), name
            setattr(node, option, value)
        return cfg

    return make


@pytest.fixture
def config(make_config, tmp_path: Path) -> Callable[..., DataPrepConfig]:
    """`config(input, **options)`: as `make_config`, for a dataset at tmp_path / "out"."""

    def make(input_path: Path, **options) -> DataPrepConfig:
        return make_config(input_path, options.pop("output", tmp_path / "out"), **options)

    return make
