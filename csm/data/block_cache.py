"""A bounded cache of blocks of remote files on this node's disk, shared by all its processes.

Each file has a sparse copy, `<sha256>.data`, and a table `<sha256>.crc` with CRC-32 and length of each block (0: not
cached). A block's checksum is written after the block and compared at every read. Whatever another process is writing,
has just removed or lost in a crash therefore reads as a miss, and the block is fetched again. When the limit would be
exceeded, the least recently read files are evicted.

fsspec's own caches have neither checksums nor a limit that holds over all processes of a node.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

BLOCK = 1 << 20  # bytes


class BlockCache:
    """Cache in `folder` of at most `limit` bytes on disk. Raises ValueError if that is less than two blocks."""

    def __init__(self, folder: Path, limit: int) -> None:
        if limit < 2 * BLOCK:
            raise ValueError(f"data.cache_gb={limit / 1e9} is too small; it must hold two blocks of {BLOCK} bytes")
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str, block: int) -> bytes | None:
        """A block of the file with this hash; None if it is not cached. The last block of a file may be shorter."""
        data_file, crc_file = self._files(sha256)
        try:
            stored = _pread(crc_file, 8, 8 * block)
            checksum, length = struct.unpack("<II", stored) if len(stored) == 8 else (0, 0)
            data = _pread(data_file, length, BLOCK * block) if length else b""
            if not length or len(data) != length or zlib.crc32(data) != checksum:
                return None
            os.utime(crc_file)  # the order of eviction
        except FileNotFoundError:
            return None
        return data

    def put(self, sha256: str, block: int, data: bytes) -> None:
        """Adds a block, evicting the least recently read files to make room for it."""
        data_file, crc_file = self._files(sha256)
        with FileLock(self.folder / "lock"):
            self._make_room(len(data), sha256)
            _pwrite(data_file, data, BLOCK * block)
            _pwrite(crc_file, struct.pack("<II", zlib.crc32(data), len(data)), 8 * block)

    def _files(self, sha256: str) -> tuple[Path, Path]:
        return self.folder / f"{sha256}.data", self.folder / f"{sha256}.crc"

    def _make_room(self, wanted: int, sha256: str) -> None:
        sizes: dict[str, int] = {}
        read: dict[str, float] = {}
        for entry in os.scandir(self.folder):
            name, _, kind = entry.name.rpartition(".")
            if kind in ("data", "crc"):
                stat = entry.stat()
                sizes[name] = sizes.get(name, 0) + stat.st_blocks * 512  # disk usage of a sparse file
                if kind == "crc":
                    read[name] = stat.st_mtime
        oldest_first = sorted(sizes, key=lambda name: (name == sha256, read.get(name, 0.0)))
        total = sum(sizes.values())
        for name in oldest_first:
            if total + wanted + _OVERHEAD <= self.limit:
                break
            for file in reversed(self._files(name)):  # the checksums first: data without them are not used
                with suppress(FileNotFoundError):
                    file.unlink()
            total -= sizes[name]


_OVERHEAD = 1 << 14  # bytes that checksums and file system may add to a block


def _pread(file: Path, length: int, offset: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def _pwrite(file: Path, data: bytes, offset: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], offset + written)
    finally:
        os.close(descriptor)
