"""Re-reads a finished dataset in full and names everything that is broken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from csm.data.dataset import DATASET_FILE, ShardedDataset, fingerprint, is_remote
from csm.data.folder import sha256_of
from csm.data.index import INDEX_SCHEMA
from csm.data.sample import Sample
from data_prep.index import index_tables, totals_of
from data_prep.processes import ordered_map
from data_prep.shard import index_row, read_sample, samples_of_tar
from data_prep.tombstones import TOMBSTONES_FILE, keys_by_shard, read_tombstones

_NAMED = 20  # of a kind of problem, each in a sentence of its own


@dataclass(frozen=True)
class _Shard:
    """What one process compares: a shard, its rows of the index, and the keys that were taken down."""

    number: int
    rows: pa.Table
    taken: set[str]


@dataclass(frozen=True)
class _Found:
    problems: list[str]
    links: list[tuple[int, int]]  # hashes of a sample's key and of the key that it calls the next one
    back_links: list[tuple[int, int]]  # hashes of the key that a sample calls the one before it, and of its own


def verify(path: str | Path, workers: int = 0) -> list[str]:
    """Problems of a dataset, one sentence each; an empty list means that it is whole.

    Hashes every file that `dataset.json` names, reads and checks every sample of every shard, and compares it with its
    row in the index; then looks at the dataset as a whole: keys, links between conversations, groups and totals.
    workers: processes; 0: as many as processors.

    Raises FileNotFoundError or ValueError if the dataset cannot even be opened.
    """
