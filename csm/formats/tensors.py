"""Lazily read weights: converting a checkpoint never holds two copies of it in memory.

A checkpoint is opened as `Weights`, a mapping from names to `LazyTensor`s; renaming, permuting and casting act on the
mapping; `write_safetensors` then reads and writes one tensor after the other.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}
_TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of known shape and dtype whose values `read` fetches."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """The tensor with `change` applied to its values; `change` must keep shape and dtype."""
        return LazyTensor(self.shape, self.dtype, lambda: change(self.read()))

    def to(self, dtype: torch.dtype) -> LazyTensor:
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))


Weights = dict[str, LazyTensor]


def lazy(tensors: Mapping[str, Tensor]) -> Weights:
    """Tensors that are in memory (or memory-mapped) already."""
    return {name: LazyTensor(tuple(tensor.shape), tensor.dtype, tensor.detach) for name, tensor in tensors.items()}


def cast(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """Floating-point tensors as `dtype`; None leaves all as they are."""
    return {
        name: tensor.to(dtype) if dtype is not None and tensor.dtype.is_floating_point else tensor
        for name, tensor in weights.items()
    }


def unite_matrices(weights: Weights) -> Weights:
    """All matrices in the widest dtype of any of them: no product of two dtypes can be computed."""
    widest = reduce(torch.promote_types, (tensor.dtype for tensor in weights.values() if len(tensor.shape) > 1))
    return {name: tensor.to(widest) if len(tensor.shape) > 1 else tensor for name, tensor in weights.items()}


def check_tensors(weights: Weights, expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises ValueError, naming the first difference, unless `weights` are exactly the `expected` names and shapes, in
    floating point."""
    for name, shape in expected.items():
        if name not in weights:
            raise ValueError(f"{where}: tensor {name} {shape} is missing; is it another model's checkpoint?")
        if weights[name].shape != shape:
            raise ValueError(f"{where}: tensor {name} has shape {weights[name].shape}, the model expects {shape}")
        if weights[name].dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            kind = str(weights[name].dtype).removeprefix("torch.")
            raise ValueError(f"{where}: tensor {name} is {kind}; quantized weights are not read, give the original")
    for name in weights:
        if name not in expected:
            raise ValueError(f"{where}: unexpected tensor {name}; is it another model's checkpoint?")


# ------------------------------------------------------------------------------------------------- reading


def open_safetensors(file: Path) -> Weights:
    """Opens `file`, or all files that it names if it is an index (`*.safetensors.index.json`), memory-mapped.

    Raises FileNotFoundError or ValueError naming the file, and the first tensor that a file cut short lacks.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy or export the model again")
    if file.suffix != ".json":
        return _open_one(file)
    names = read_index(file)
    shards = {shard: open_safetensors(file.with_name(shard)) for shard in sorted(set(names.values()))}
    for name, shard in names.items():
        if name not in shards[shard]:
            raise ValueError(f"{file}: tensor {name} is not in {shard}, where it should be; copy the model again")
    return {name: shards[shard][name] for name, shard in names.items()}


def read_index(file: Path) -> dict[str, str]:
    """{tensor: file that holds it} of an index of safetensors files. Raises ValueError naming the index."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not an index of safetensors files ({error!r}); copy the model again") from None


def _open_one(file: Path) -> Weights:
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or cut short{_first_cut(file)} ({error}); copy it again") from None
    weights: Weights = {}
    for name in handle.keys():  # noqa: SIM118 (not a dict)
        view = handle.get_slice(name)
        dtype = _TORCH_DTYPES.get(view.get_dtype())
        if dtype is None:
            raise ValueError(f"{file}: tensor {name} has the dtype {view.get_dtype()}, which cannot be read here")

        def read(name: str = name) -> Tensor:
            return handle.get_tensor(name)

        weights[name] = LazyTensor(tuple(view.get_shape()), dtype, read)
    return weights


def _first_cut(file: Path) -> str:
    """ ", at tensor NAME" for a file that ends within its tensors; "" if not even its header can be read."""
    with file.open("rb") as stream:
        head = stream.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        content = stream.read(min(size, 100_000_000))
    try:
        entries = json.loads(content)
        present = file.stat().st_size - 8 - size
        cut = [(entry["data_offsets"][1], name) for name, entry in entries.items() if name != "__metadata__"]
        beyond = sorted((end, name) for end, name in cut if end > present)
        return f", first at tensor {beyond[0][1]} {tuple(entries[beyond[0][1]]['shape'])}" if beyond else ""
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""


def load_pickled(path: Path) -> dict[str, Any]:
    """A torch.save'd dict, memory-mapped on the CPU where possible, without unpickling objects.

    Raises FileNotFoundError, or ValueError naming the file if it is damaged or holds anything but plain data.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported \w+: (?:GLOBAL )?(\S+)", str(error))
        raise ValueError(
            f"checkpoint {path} is damaged, or holds Python objects, which could run code and are not loaded"
            f"{f' ({found[1]})' if found else ''}; if you trust it, load it with torch and save its tensors alone"
        ) from None
    except (RuntimeError, BadZipFile, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


# ------------------------------------------------------------------------------------------------- writing


def write_safetensors(weights: Weights, file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file, reading one tensor at a time (safetensors' own writer wants them all in memory).

    The format: 8 bytes length of the header, the header as JSON padded with spaces, the tensors' bytes
    (huggingface/safetensors README).
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.dtype.itemsize * _numel(tensor.shape)
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(content)))
        stream.write(content)
        for name, tensor in weights.items():
            values = tensor.read().contiguous()
            assert tuple(values.shape) == tensor.shape and values.dtype == tensor.dtype, name
            stream.write(values.reshape(-1).view(torch.uint8).numpy().data)


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
