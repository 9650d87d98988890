"""The files of a dataset folder, local or remote (csm/data/remote.py), behind one small interface."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from csm.data.sample import REMEDY

_MAX_OPEN_SHARDS = 256  # well below the usual limit of 1024 open files


@dataclass
class FileInfo:
    """A file of the dataset, by name within its folder."""

    name: str
    size: int  # bytes
    sha256: str


class DatasetFolder(Protocol):
    """Implementations work in forked and spawned worker processes."""

    def where(self, name: str) -> str:
        """A file's full name, for messages."""
        ...

    def description(self, name: str) -> str | None:
        """A text file as it is now; None if there is none."""
        ...

    def find(self, name: str) -> Path | None:
        """A file whose name says its content, as a local path; None if there is none."""
        ...

    def whole(self, file: FileInfo) -> Path:
        """A file that is needed as a whole, as a local path.

        Raises FileNotFoundError if it is missing, ValueError if it is not the file described.
        """
        ...

    def check_shards(self, shards: list[FileInfo]) -> None:
        """Raises FileNotFoundError or ValueError, naming the shard, where one is missing or cut short, as far as that
        can be told at no cost."""
        ...

    def read(self, file: FileInfo, offset: int, length: int) -> bytes:
        """Bytes of a shard. Raises ValueError or OSError naming it if they are not there."""
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

    def description(self, name: str) -> str | None:
        path = self.find(name)
        return path and path.read_text(encoding="utf-8")

    def find(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def whole(self, file: FileInfo) -> Path:
        self.check_shards([file])  # by size alone: the codec's and the index's content is checked where it is read
        return self.path / file.name

    def check_shards(self, shards: list[FileInfo]) -> None:
        for file in shards:
            path = self.path / file.name
            if not path.is_file():
                raise missing(str(path))
            check_size(str(path), path.stat().st_size, file.size)

    def read(self, file: FileInfo, offset: int, length: int) -> bytes:
        data = os.pread(self._file(file.name).fileno(), length, offset)
        if len(data) != length:
            raise ends_early(self.where(file.name))
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
