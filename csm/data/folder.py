"""The files of a dataset folder, local or remote (csm/data/remote.py), behind one small interface."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from csm.data.sample import REMEDY

_MAX_OPEN_SHARDS = 256  # well below the usual limit of 1024 open files


class DatasetFolder(Protocol):
    """Files are named as in `dataset.json`. Implementations work in forked and spawned worker processes."""

    def where(self, name: str) -> str:
        """The file's full name, for messages."""
        ...

    def find(self, name: str) -> Path | None:
        """A small file as a local path; None if there is none."""
        ...

    def whole(self, name: str, size: int, sha256: str) -> Path:
        """A file that is needed as a whole, as a local path.

        Raises FileNotFoundError if it is missing, ValueError if it is not `size` bytes long.
        """
        ...

    def check_shards(self, sizes: dict[str, int]) -> None:
        """Raises FileNotFoundError or ValueError, naming the shard, where one is missing or cut short, as far as that
        can be told without reading it."""
        ...

    def read(self, name: str, size: int, offset: int, length: int) -> bytes:
        """`length` bytes of a shard of `size` bytes. Raises ValueError or OSError naming it if they are not there."""
        ...


def ends_early(where: str) -> ValueError:
    return ValueError(f"{where}: the shard ends before the sample does; restore it, or {REMEDY}")


def check_size(where: str, found: int, size: int) -> None:
    """Raises ValueError if a file has another size than `dataset.json` says."""
    if found != size:
        problem = "cut short" if found < size else "longer than it was written"
        raise ValueError(f"{where}: {problem} ({found} bytes of {size}); restore it, or {REMEDY}")


def missing(where: str) -> FileNotFoundError:
    return FileNotFoundError(f"{where}: missing, but named in dataset.json; restore it, or {REMEDY}")


class LocalFolder:
    """A folder of a mounted file system: one `pread` for each range."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def where(self, name: str) -> str:
        return str(self.path / name)

    def find(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def whole(self, name: str, size: int, sha256: str) -> Path:
        self.check_shards({name: size})
        return self.path / name

    def check_shards(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            path = self.path / name
            if not path.is_file():
                raise missing(str(path))
            check_size(str(path), path.stat().st_size, size)

    def read(self, name: str, size: int, offset: int, length: int) -> bytes:
        data = os.pread(self._file(name).fileno(), length, offset)
        if len(data) != length:
            raise ends_early(self.where(name))
        return data

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            if len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[name] = (self.path / name).open("rb", buffering=0)
        self._open.move_to_end(name)
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files stay in their process
