"""Sharded training checkpoints: folders that Lightning's ModelParallelStrategy (FSDP2) writes, every rank its own part.

    meta.pt       the part of a .ckpt file that is not tensors (our "csm" entry, the step, the loops), and the CRC-32 of
    .metadata     which file holds which part of which tensor, a pickle of torch.distributed.checkpoint
    *.distcp      the parts, each a record with a CRC-32 of its own (csm/checkpoint/checksums.py)

torch unpickles .metadata without restrictions; here only the classes that it consists of are admitted. Nor does it look
at any CRC: here all that is read is checked.
"""

from __future__ import annotations

import io
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from csm.checkpoint.checksums import REMEDY, check_archive, unwritten, writing
from csm.formats.tensors import LazyTensor, Weights, load_pickled

META, INDEX = "meta.pt", ".metadata"
WEIGHTS, OPTIMIZER = "state_dict", "optimizer_0"  # parts of a checkpoint
INDEX_CRC = "index_crc32"  # key in meta.pt; checkpoints of earlier versions lack it
_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_NAMES = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
}


def is_sharded(path: Path) -> bool:
    return (path / META).is_file() and (path / INDEX).is_file()


def read_sharded(path: Path, part: str = WEIGHTS) -> tuple[dict[str, Any], Weights]:
    """(contents of meta.pt, the module's tensors under their names in the LightningModule).

    part: OPTIMIZER gives AdamW's state instead, as `state.<name of the parameter>.{exp_avg,exp_avg_sq,step}`.

    Tensors are put together from their parts when they are read, one at a time, in a single process. Raises ValueError
    naming the file that is damaged or holds anything but tensors.
    """
    content, metadata = _read_index(path)
    reader = _Reader(path, metadata)
    weights: Weights = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not key.startswith(f"{part}.") or not isinstance(entry, TensorStorageMetadata):
            continue
        name, dtype, shape = key.removeprefix(f"{part}."), entry.properties.dtype, tuple(entry.size)

        def read(name: str = name, shape: tuple[int, ...] = shape, dtype: torch.dtype = dtype) -> Tensor:
            tensor = torch.empty(shape, dtype=dtype)
            _load({part: {name: tensor}}, reader, no_dist=True)
            return tensor

        weights[name] = LazyTensor(shape, dtype, read)
    return content, weights


def check_parts(path: Path) -> None:
    """Raises ValueError naming the file if a sharded checkpoint lacks a part or one was cut short. The parts are not
    read: every process of a large run looks at the whole checkpoint here, and reads its own share later."""
    _, metadata = _read_index(path)
    ends: dict[str, int] = {}
    for part in metadata.storage_data.values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"checkpoint {path} is damaged: {name} is missing ({REMEDY})")
        if file.stat().st_size < end:
            size = file.stat().st_size
            raise ValueError(f"checkpoint {path} is damaged: {name} is cut short, {size} of {end} bytes ({REMEDY})")


def load_sharded(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Reads this rank's share of the tensors in `state`, {part: state_dict}, in place; returns the contents of meta.pt.
    All ranks must call it. Raises the same ValueError on all, naming the file, if any has found something damaged."""
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = [_read_index(path)]
        except (ValueError, OSError) as error:
            found = [ValueError(str(error))]
    dist.broadcast_object_list(found)
    if isinstance(found[0], ValueError):
        raise found[0]
    content, metadata = found[0]
    _load(state, _Reader(path, metadata))
    return content


def write_sharded(path: Path, state: dict[str, Any], content: dict[str, Any]) -> None:
    """Writes `state`, {part: state_dict}, every rank its own share, and `content`, which goes into meta.pt. All ranks
    must call it. Raises the same OSError on all of them if any cannot write."""
    try:
        dcp.save(state, storage_writer=_Writer(path, content))
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        if not isinstance(cause, OSError):
            raise
        raise unwritten(path, f"rank {rank}: {cause.strerror}") from error


class _Writer(dcp.FileSystemWriter):
    """Writes meta.pt too, on the rank that writes the index: torch tells all ranks of an error there."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(path)
        self._folder, self._content = path, content

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with writing():
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        crc = zlib.crc32((self._folder / INDEX).read_bytes())
        with (self._folder / META).open("wb") as stream, writing():
            torch.save({**self._content, INDEX_CRC: crc}, stream)
            stream.flush()
            os.fsync(stream.fileno())


class _Reader(dcp.FileSystemReader):
    """Reads parts by an index that was admitted already, each after a check of its CRC-32."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._folder, self._metadata = path, metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        parts = {item.storage_index for item in plan.items}
        for part in sorted(parts, key=lambda part: (self._place(part).relative_path, self._place(part).offset)):
            self._check(part)
        return super().read_data(plan, planner)

    def _place(self, part: MetadataIndex) -> Any:
        return self._metadata.storage_data[part]

    def _check(self, part: MetadataIndex) -> None:
        place = self._place(part)
        try:
            with (self._folder / place.relative_path).open("rb") as stream:
                stream.seek(place.offset)
                check_archive(io.BytesIO(stream.read(place.length)))
        except (ValueError, OSError) as error:
            where, reason = f"{place.relative_path}, tensor {part.fqn}", getattr(error, "strerror", error)
            raise ValueError(f"checkpoint {self._folder} is damaged: {where}: {reason} ({REMEDY})") from None


def _load(state: dict[str, Any], reader: _Reader, no_dist: bool = False) -> None:
    try:
        dcp.load(state, storage_reader=reader, no_dist=no_dist)
    except CheckpointException as error:  # torch's wrapper around whatever went wrong on some rank, raised on all
        cause, _ = next(iter(error.failures.values()))
        if isinstance(cause, ValueError):
            raise cause from error
        if not isinstance(cause, Exception):
            raise
        raise ValueError(f"checkpoint {reader.path} cannot be read ({cause!r}; {REMEDY})") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.memory_format))
        if module in _MODULES or (module, name) in _NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_index(path: Path) -> tuple[dict[str, Any], Metadata]:
    """(contents of meta.pt, the index)."""
    try:
        check_archive(path / META)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is damaged: {META}: {error} ({REMEDY})") from None
    content = load_pickled(path / META)
    index = (path / INDEX).read_bytes()
    if content.get(INDEX_CRC, zlib.crc32(index)) != zlib.crc32(index):
        raise ValueError(f"checkpoint {path} is damaged: the content of {INDEX} has changed ({REMEDY})")
    try:
        metadata = _Unpickler(io.BytesIO(index)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{path / INDEX} is damaged, or holds Python objects, which are not loaded ({error})"
        ) from None
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path / INDEX} is not the index of a sharded checkpoint")
    return content, metadata
