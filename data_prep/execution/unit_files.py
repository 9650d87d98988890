"""The files of a unit, the log of attempts at its recordings, and the classification of failures; see unit.py.

`attempts.jsonl` tells how often work on a recording was started but did not end. An entry is written before the work,
so that a file that kills its process can be identified; one line per event:

    {"begin": ["pod/ep1"], "stage": "vad"}      work on these recordings starts
    {"end": ["pod/ep1"]}                        it ended, with a result or a handled exception
    {"timeout": ["pod/ep1"]}                    it took too long; the process exits

Lines are not synced to disk: they survive the death of the process, and a recording rarely takes down the machine.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from csm.files import sha256_of, write_atomically
from csm.judges.hub import ModelUnavailable
from data_prep.reasons import Reason
from data_prep.records import Rejection, StageTime
from data_prep.tables import from_dict, read_rows, schema_of, write_rows

ATTEMPTS_FILE = "attempts.jsonl"

TRANSIENT_REASONS = (Reason.crashed, Reason.failed, Reason.timeout, Reason.audio_changed)
"""Reasons of rejections that another attempt may avoid."""


class StageFiles:
    """The files of one stage with one fingerprint, in a unit's folder."""

    def __init__(self, folder: Path, stage: str, fingerprint: str, result: type) -> None:
        self.folder, self.result = folder, result
        self.results_path = folder / f"{stage}-{fingerprint}.parquet"
        self.rejects_path = folder / f"{stage}-{fingerprint}.rejects.parquet"
        self.marker = folder / f"{stage}-{fingerprint}.json"

    def complete(self) -> bool:
        """Whether both files exist and match the hashes in the marker."""
        try:
            hashes = json.loads(self.marker.read_text(encoding="utf-8"))["sha256"]
        except (FileNotFoundError, ValueError, KeyError):
            return False
        return all((self.folder / name).is_file() and sha256_of(self.folder / name) == hashes[name] for name in hashes)

    def write(self, results: dict[str, Any], rejections: list[Rejection], took: StageTime) -> None:
        """results: recording id -> result."""
        schema = pa.schema([pa.field("recording", pa.string()), *schema_of(self.result)])
        rows = [{"recording": recording, **asdict(result)} for recording, result in results.items()]
        table = pa.Table.from_pylist(rows, schema)
        write_atomically(self.results_path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
        write_rows(self.rejects_path, rejections, Rejection)
        paths = (self.results_path, self.rejects_path)
        write_json(self.marker, {"sha256": {path.name: sha256_of(path) for path in paths}, "took": asdict(took)})

    def read(self) -> tuple[dict[str, Any], list[Rejection], StageTime]:
        """Inverse of `write`."""
        rows = pq.read_table(self.results_path).to_pylist()
        results: dict[str, Any] = {row["recording"]: from_dict(self.result, row) for row in rows}
        took = from_dict(StageTime, json.loads(self.marker.read_text(encoding="utf-8"))["took"])
        return results, self.rejections(), took

    def rejections(self) -> list[Rejection]:
        """The rejections alone."""
        return read_rows(self.rejects_path, Rejection)

    def forget(self) -> None:
        """Removes the marker, so that the stage is repeated."""
        self.marker.unlink(missing_ok=True)


class Attempts:
    """The log of attempts of one unit; only one process writes at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ATTEMPTS_FILE
        self.unended: Counter[str] = Counter()  # recording -> how often its worker died
        self.timeouts: Counter[str] = Counter()
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            self._count(line)
        self._torn = bool(text) and not text.endswith("\n")

    def _count(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:  # the process died while writing the last line: the event did not happen
            return
        self.unended.update(event.get("begin", []))
        self.unended.subtract(event.get("end", []))
        self.timeouts.update(event.get("timeout", []))

    def begin(self, recordings: list[str], stage: str) -> None:
        self._append({"begin": recordings, "stage": stage})

    def end(self, recordings: list[str]) -> None:
        self._append({"end": recordings})

    def timeout(self, recordings: list[str]) -> None:
        self._append({"timeout": recordings})

    def _append(self, event: dict[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn + json.dumps(event) + "\n")
        self._torn = False


class Failure(Enum):
    transient = "transient"  # retried
    permanent = "permanent"  # caused by the recording or a bug: not retried in this run
    fatal = "fatal"  # the process, or the whole run, cannot continue


_TRANSIENT_ERRNOS = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
}
_FATAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}


def classify(error: BaseException) -> Failure:
    """Classifies an exception of a stage.

    Fatal are a full disk, a missing model or library (missing audio raises `RejectedRecording`), and every CUDA error
    other than out-of-memory, since it leaves the CUDA context of the process unusable.
    """
    if isinstance(error, (ImportError, FileNotFoundError, ModelUnavailable)):
        return Failure.fatal
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return Failure.transient
    if isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA" in str(error)):
        return Failure.transient if "out of memory" in str(error) else Failure.fatal
    if isinstance(error, OSError) and error.errno in _FATAL_ERRNOS:
        return Failure.fatal
    if isinstance(error, (ConnectionError, TimeoutError)) or (
        isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS
    ):
        return Failure.transient
    return Failure.permanent


def write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
