from collections.abc import Callable
from pathlib import Path

import pytest

from csm.config import CodecConfig, CodecKind, DataPrepConfig


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DataPrepConfig]:
    """`config(input, **options)`: options for a dataset at tmp_path / "out" with a small spectral codec."""

    def make(input_path: Path, **options) -> DataPrepConfig:
        codec = CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23)
        return DataPrepConfig(**{"input": str(input_path), "output": str(tmp_path / "out"), "codec": codec, **options})

    return make
