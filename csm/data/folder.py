"""The files of a dataset in a local folder, and the checks that remote folders (csm/data/remote.py) share."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from csm.data.sample import REMEDY

_MAX_OPEN_SHARDS = 256  # well below the usual limit of 1024 open files


@dataclass
class FileInfo:
    """A file of the dataset, by name within its folder."""

    name: str
    size: int  # bytes
    sha256: str


def check_file(path: Path, size: int) -> None:
    """Raises FileNotFoundError if a file that `dataset.json` names is missing, ValueError if its size differs."""
    if not path.is_file():
        raise missing_file_error(str(path))
    check_size(str(path), path.stat().st_size, size)


def check_size(where: str, found: int, size: int) -> None:
    """Raises ValueError, naming the file as `where`, if its size is not the one in `dataset.json`."""
    if found != size:
        problem = "cut short" if found < size else "longer than it was written"
        raise ValueError(f"{where}: {problem} ({found} bytes of {size}); restore it, or {REMEDY}")


def missing_file_error(where: str) -> FileNotFoundError:
    return FileNotFoundError(f"{where}: missing, but named in dataset.json; restore it, or {REMEDY}")


class LocalFolder:
    """A dataset folder on a mounted file system. Works in forked and spawned worker processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def where(self, name: str) -> str:
        """The full name of a file, for messages."""
        return str(self.path / name)

    def read_text(self, name: str) -> str | None:
        """The current content of a text file; None if there is no such file."""
        path = self.find(name)
        return path.read_text(encoding="utf-8") if path else None

    def find(self, name: str) -> Path | None:
        """Local path of a file whose name identifies its content; None if there is no such file."""
        path = self.path / name
        return path if path.is_file() else None

    def local_copy(self, file: FileInfo) -> Path:
        """Local path of a file that is needed in full.

        Raises FileNotFoundError if it is missing, ValueError if it is not the file described. Here only its size is
        compared: the content of the index and the codec is checked where they are read.
        """
        check_file(self.path / file.name, file.size)
        return self.path / file.name

    def check_shards(self, shards: Sequence[FileInfo]) -> None:
        """Raises FileNotFoundError or ValueError, naming the shard, if one is missing or has another size."""
        for file in shards:
            check_file(self.path / file.name, file.size)

    def read(self, file: FileInfo, offset: int, length: int) -> bytes:
        """`length` bytes of a shard from `offset` on, in one `pread`. Raises ValueError if the shard ends before."""
        data = os.pread(self._file(file.name).fileno(), length, offset)
        if len(data) != length:
            raise ValueError(f"{self.where(file.name)}: ends within a sample; restore it, or {REMEDY}")
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
