"""Staging of samples on disk before they are shuffled: one file of bytes and one table per unit.

Memory never holds more than a few thousand rows as Python objects: writers flush them to the table, and packing reads
the tables into numpy columns of about 50 bytes per sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csm.data.sample import CODES_MEMBER, JSON_MEMBER, Sample, sample_to_members

_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "split": pa.dictionary(pa.int32(), pa.string()),
        "codes_size": pa.int32(),  # bytes; in the file: key, codes member, json member, then the next sample
        "json_size": pa.int32(),
        "digest": pa.binary(16),  # of the two members
    }
)
_FLUSH = 4096  # rows
_BYTES, _TABLE = ".samples", ".parquet"


class StagedUnit:
    """Context manager that writes the samples of one unit to `folder`; units may be written in parallel.

    name: of the unit, unique in the folder
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._file = (folder / (name + _BYTES)).open("wb")
        self._table = pq.ParquetWriter(folder / (name + _TABLE), _SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> StagedUnit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flush()
        self._file.close()
        self._table.close()

    def add(self, sample: Sample) -> None:
        """Raises ValueError if the sample is not valid, see csm/data/sample.py."""
        members = sample_to_members(sample)
        codes, record = members[CODES_MEMBER], members[JSON_MEMBER]
        self._file.write(sample.key.encode() + codes + record)
        digest = hashlib.sha256(codes + record).digest()[:16]
        self._rows.append(
            {
                "key": sample.key,
                "split": sample.split,
                "codes_size": len(codes),
                "json_size": len(record),
                "digest": digest,
            }
        )
        if len(self._rows) == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        self._table.write_table(pa.Table.from_pylist(self._rows, _SCHEMA))
        self._rows = []


@dataclass(frozen=True)
class StagedSamples:
    """All samples of a staging folder, as columns with one entry per sample.

    units:      names of the units, ascending
    splits:     names of the splits, ascending
    unit:       int32 [n], position in `units`
    split:      int8 [n], position in `splits`
    offset:     int64 [n], of the key, in bytes from the start of the unit's file
    key_size:   uint8 [n], bytes
    codes_size: int32 [n], bytes, right after the key
    json_size:  int32 [n], bytes, right after the codes
    order:      uint64 [n, 2], sort key of the shuffle: a hash of seed and sample key
    digest:     uint64 [n, 2], hash of the members
    """

    units: list[str]
    splits: list[str]
    unit: np.ndarray
    split: np.ndarray
    offset: np.ndarray
    key_size: np.ndarray
    codes_size: np.ndarray
    json_size: np.ndarray
    order: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.unit)


def staged_file(unit: str) -> str:
    """Name of the file that holds a unit's bytes."""
    return unit + _BYTES


def read_staging(folder: Path, seed: int) -> StagedSamples:
    """The columns of all units, whatever the order in which they were written.

    Raises ValueError if no sample is staged.
    """
    units = sorted(path.name.removesuffix(_TABLE) for path in folder.glob("*" + _TABLE))
    parts: list[dict[str, np.ndarray]] = []
    found: dict[str, int] = {}  # split -> number, by appearance
    for number, unit in enumerate(units):
        end = 0
        for batch in pq.ParquetFile(folder / (unit + _TABLE)).iter_batches(_FLUSH, use_threads=False):
            keys = batch["key"].to_pylist()
            key_size = np.array([len(key) for key in keys], np.uint8)  # ASCII
            codes_size, json_size = batch["codes_size"].to_numpy(), batch["json_size"].to_numpy()
            sizes = key_size + codes_size.astype(np.int64) + json_size
            numbers = [found.setdefault(name.as_py(), len(found)) for name in batch["split"].dictionary]
            parts.append(
                {
                    "unit": np.full(len(batch), number, np.int32),
                    "split": np.array(numbers, np.int8)[batch["split"].indices.to_numpy()],
                    "offset": end + np.cumsum(sizes) - sizes,
                    "key_size": key_size,
                    "codes_size": codes_size,
                    "json_size": json_size,
                    "order": _order(keys, seed),
                    "digest": np.frombuffer(b"".join(batch["digest"].to_pylist()), "<u8").reshape(-1, 2),
                }
            )
            end += int(sizes.sum())
    if not parts:
        raise ValueError(f"{folder}: no conversations, so there is nothing to pack")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    splits = sorted(found)
    renumbered = np.array([splits.index(name) for name in found], np.int8)
    return StagedSamples(units, splits, **columns | {"split": renumbered[columns["split"]]})


def _order(keys: list[str], seed: int) -> np.ndarray:
    """uint64 [n, 2]: the leading 16 bytes of the hash of seed and key, as big-endian numbers."""
    digests = b"".join(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:16] for key in keys)
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
