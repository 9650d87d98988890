"""Writes a mixture of datasets for training: a YAML file for `configs/train/data/`.

python -m data_prep mix '+weights={data/calls: 3, data/books: 1}' output=configs/train/data/talk.yaml
python train.py data=talk
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import yaml

from csm.config import DataConfig, SourceConfig
from csm.data.sources import open_sources
from csm.files import write_atomically


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    path: str
    weight: float
    share: float  # of the training rows
    hours: float  # of split "train"
    epochs: float  # passes over it by the time that every dataset has been seen once in full


def mix(weights: dict[str, float], output: Path, overwrite: bool = False) -> dict[str, Part]:
    """Writes the YAML file `output`; returns the parts of the mixture by name, the last component of their paths.

    Paths are stored as given, so relative ones are relative to the working directory of training.

    Raises:
        FileNotFoundError: a dataset is missing.
        ValueError: a dataset is damaged, has no training data or another codec than the others; a weight is not above
            0; or `output` exists and `overwrite` is not set.
    """
    if not weights:
        raise ValueError("weights is not set; give '+weights={data/calls: 3, data/books: 1}'")
    if output.suffix != ".yaml":
        raise ValueError(f"{output}: must end in .yaml, so that training finds it")
    if output.exists() and not overwrite:
        raise ValueError(f"{output}: exists already; add overwrite=true to replace it")
    configured: dict[str, SourceConfig] = {}
    for path, weight in weights.items():
        configured[_name(path, configured)] = SourceConfig(path=path, weight=float(weight))
    parts: dict[str, Part] = {}
    total = sum(source.weight for source in configured.values())
    for name, source in open_sources(DataConfig(sources=configured)).items():
        dataset = source.dataset
        hours = dataset.info.totals.get("train", {}).get("frames", 0) / dataset.codec.frame_rate / 3600
        if not hours:
            raise ValueError(f"{configured[name].path}: has nothing in split train; remove it from the mixture")
        share = source.weight / total
        parts[name] = Part(configured[name].path, source.weight, share, hours, share / hours)
    slowest = min(part.epochs for part in parts.values())
    parts = {name: replace(part, epochs=part.epochs / slowest) for name, part in parts.items()}
    write_atomically(output, lambda path: path.write_text(_text(parts), encoding="utf-8"))
    return parts


def describe(parts: dict[str, Part]) -> str:
    """A readable summary: one line per dataset, and one for the mixture."""
    width = max(len(name) for name in parts)
    lines = [
        f"{name:{width}}  {part.hours:10.3f} hours  weight {part.weight:g} ({100 * part.share:.1f} % of the rows)  "
        f"{part.epochs:.2f} epochs"
        for name, part in parts.items()
    ]
    hours = sum(part.hours * part.epochs for part in parts.values())
    return "\n".join([*lines, f"every dataset has been seen in full after {hours:.3f} hours"])


def _name(path: str, taken: dict[str, SourceConfig]) -> str:
    """The last component of the path, with a number appended if that name is taken."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(candidate for candidate in names if candidate not in taken)


def _text(parts: dict[str, Part]) -> str:
    sources = {name: {"path": part.path, "weight": part.weight} for name, part in parts.items()}
    comment = "".join(f"# {line}\n" for line in describe(parts).splitlines())
    return comment + yaml.safe_dump({"path": None, "max_seq_len": 2048, "sources": sources}, sort_keys=False)
