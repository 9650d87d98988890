"""The datasets a run trains on, as configured: one, or a mixture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csm.codec import check_same_codec
from csm.config import DataConfig, SourceConfig
from csm.data.dataset import ShardedDataset

ONLY_SOURCE = "data"  # name of the source where `data.path` is the only one


@dataclass(frozen=True)
class Source:
    """A dataset and its part in the mixture."""

    dataset: ShardedDataset
    weight: float
    max_epochs: int | None


def cache_folder(data: DataConfig) -> Path:
    return Path(data.cache_dir).expanduser()


def open_sources(data: DataConfig) -> dict[str, Source]:
    """Name -> source, in the configuration's order.

    Raises FileNotFoundError or ValueError as `ShardedDataset` does, and ValueError if the options make no sense or the
    datasets were made with different codecs.
    """
    if (data.path is None) == (not data.sources):
        raise ValueError("set either data.path=FOLDER or data.sources={name: {path: FOLDER, weight: 1.0}, ...}")
    configured = data.sources if data.path is None else {ONLY_SOURCE: SourceConfig(path=data.path)}
    for name, source in configured.items():
        if not source.weight > 0:
            raise ValueError(f"data.sources.{name}.weight={source.weight} must be greater than 0; or leave it out")
        if source.max_epochs is not None and source.max_epochs < 1:
            raise ValueError(f"data.sources.{name}.max_epochs={source.max_epochs} must be at least 1, or null")
    cache_bytes = round(data.cache_gb * 1e9)
    sources = {
        name: Source(ShardedDataset(source.path, cache_folder(data), cache_bytes), source.weight, source.max_epochs)
        for name, source in configured.items()
    }
    first = next(iter(sources))
    for name, source in sources.items():
        check_same_codec(sources[first].dataset.codec, source.dataset.codec, f"data.sources {first} and {name}")
    return sources
