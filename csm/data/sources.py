"""The datasets of a training run: a single one or a mixture, as configured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csm.codec import check_same_codec
from csm.config import DataConfig, SourceConfig
from csm.data.dataset import ShardedDataset

ONLY_SOURCE = "data"  # name of the source if there is only `data.path`


@dataclass(frozen=True)
class Source:
    """A dataset and its share of the mixture."""

    dataset: ShardedDataset
    weight: float
    max_epochs: int | None
    final_weight: float | None = None


def cache_folder(data: DataConfig) -> Path:
    return Path(data.cache_dir).expanduser()


def open_sources(data: DataConfig) -> dict[str, Source]:
    """Opens all sources, by name in the order of the configuration.

    Raises FileNotFoundError or ValueError like `ShardedDataset`, and ValueError if an option is invalid or the datasets
    have different codecs.
    """
    if (data.path is None) == (not data.sources):
        raise ValueError("set either data.path=FOLDER or data.sources={name: {path: FOLDER, weight: 1.0}, ...}")
    configured = data.sources if data.path is None else {ONLY_SOURCE: SourceConfig(path=data.path)}
    for name, options in configured.items():
        if not options.weight > 0:
            raise ValueError(
                f"data.sources.{name}.weight={options.weight} must be greater than 0, or the source removed"
            )
        if options.final_weight is not None and not options.final_weight > 0:
            raise ValueError(
                f"data.sources.{name}.final_weight={options.final_weight} must be greater than 0; give a small one, "
                "or max_epochs, to a source that is to fade out"
            )
        if options.max_epochs is not None and options.max_epochs < 1:
            raise ValueError(f"data.sources.{name}.max_epochs={options.max_epochs} must be at least 1, or null")
    cache_bytes = round(data.cache_gb * 1e9)
    sources = {
        name: Source(
            ShardedDataset(options.path, cache_folder(data), cache_bytes),
            options.weight,
            options.max_epochs,
            options.final_weight,
        )
        for name, options in configured.items()
    }
    first = next(iter(sources))
    for name, source in sources.items():
        check_same_codec(sources[first].dataset.codec, source.dataset.codec, f"data.sources {first} and {name}")
    return sources
