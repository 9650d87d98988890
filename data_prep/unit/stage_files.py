"""What a stage leaves of a unit; see run_unit.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csm.data.folder import sha256_of
from csm.files import write_atomically
from data_prep.records import Reject, StageTime
from data_prep.tables import from_dict, read_rows, schema_of, write_rows

TRANSIENT_REASONS = ("crashed", "failed", "timeout")
"""Rejections that another attempt may undo."""


class StageFiles:
    """Files of one stage with one fingerprint in a unit's folder."""

    def __init__(self, folder: Path, stage: str, fingerprint: str, result: type) -> None:
        self.folder, self.result = folder, result
        self.results_path = folder / f"{stage}-{fingerprint}.parquet"
        self.rejects_path = folder / f"{stage}-{fingerprint}.rejects.parquet"
        self.marker = folder / f"{stage}-{fingerprint}.json"

    def complete(self) -> bool:
        """Whether both files are there as they were written, byte for byte."""
        try:
            hashes = json.loads(self.marker.read_text(encoding="utf-8"))["sha256"]
        except (FileNotFoundError, ValueError, KeyError):
            return False
        return all((self.folder / name).is_file() and sha256_of(self.folder / name) == hashes[name] for name in hashes)

    def write(self, results: dict[str, Any], rejects: list[Reject], took: StageTime) -> None:
        """results: recording id -> result."""
        schema = pa.schema([pa.field("recording", pa.string()), *schema_of(self.result)])
        rows = [{"recording": recording, **asdict(result)} for recording, result in results.items()]
        table = pa.Table.from_pylist(rows, schema)
        write_atomically(self.results_path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
        write_rows(self.rejects_path, rejects, Reject)
        paths = (self.results_path, self.rejects_path)
        write_json(self.marker, {"sha256": {path.name: sha256_of(path) for path in paths}, "took": asdict(took)})

    def read(self) -> tuple[dict[str, Any], list[Reject], StageTime]:
        """Inverse of `write`."""
        rows = pq.read_table(self.results_path).to_pylist()
        results = {row["recording"]: from_dict(self.result, row) for row in rows}
        took = from_dict(StageTime, json.loads(self.marker.read_text(encoding="utf-8"))["took"])
        return results, self.rejects(), took

    def rejects(self) -> list[Reject]:
        return read_rows(self.rejects_path, Reject)

    def forget(self) -> None:
        """The stage is not done any more."""
        self.marker.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
