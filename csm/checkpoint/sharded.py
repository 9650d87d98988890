"""Sharded training checkpoints: folders that Lightning's ModelParallelStrategy (FSDP2) writes, every rank its own part.

    meta.pt       what a .ckpt file holds beside tensors (our "csm" entry, the step, the loops)
    .metadata     which file holds which part of which tensor, a pickle of torch.distributed.checkpoint
    *.distcp      the parts

torch unpickles .metadata without restrictions; here only the classes that it consists of are admitted.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from csm.checkpoint.tensors import LazyTensor, Weights, load_pickled

META, INDEX = "meta.pt", ".metadata"
WEIGHTS, OPTIMIZER = "state_dict", "optimizer_0"  # parts of a checkpoint
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
    content = load_pickled(path / META)
    metadata = _read_metadata(path / INDEX)
    reader = _Reader(path, metadata)
    weights: Weights = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not key.startswith(f"{part}.") or not isinstance(entry, TensorStorageMetadata):
            continue
        name, dtype, shape = key.removeprefix(f"{part}."), entry.properties.dtype, tuple(entry.size)

        def read(name: str = name, shape: tuple[int, ...] = shape, dtype: torch.dtype = dtype) -> Tensor:
            tensor = torch.empty(shape, dtype=dtype)
            try:
                dcp.load({part: {name: tensor}}, storage_reader=reader, no_dist=True)
            except CheckpointException as error:  # torch's wrapper around whatever a file caused
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(f"checkpoint {path}: tensor {name} cannot be read ({reason})") from error
            return tensor

        weights[name] = LazyTensor(shape, dtype, read)
    return content, weights


def check_parts(path: Path) -> None:
    """Raises ValueError naming the file if a sharded checkpoint lacks a part or one was cut short. Contents are not
    read: every process of a large run looks at the whole checkpoint here."""
    load_pickled(path / META)
    ends: dict[str, int] = {}
    for part in _read_metadata(path / INDEX).storage_data.values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"checkpoint {path} is damaged: {name} is missing")
        if file.stat().st_size < end:
            raise ValueError(
                f"checkpoint {path} is damaged: {name} is cut short ({file.stat().st_size} of {end} bytes)"
            )


class _Reader(dcp.FileSystemReader):
    """Reads parts by an index that was admitted already."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.memory_format))
        if module in _MODULES or (module, name) in _NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_metadata(file: Path) -> Metadata:
    try:
        with file.open("rb") as stream:
            metadata = _Unpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is damaged, or holds Python objects, which are not loaded ({error})") from None
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{file} is not the index of a sharded checkpoint")
    return metadata
