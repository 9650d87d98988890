"""Datasets behind fsspec URLs (s3://, gs://, hf://, https://, memory://, ...).

Index and codec are downloaded and checked by size and hash; shards are read in blocks through a bounded cache
(csm/data/block_cache.py). Failed requests are retried a few times, each with a warning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import fsspec
from filelock import FileLock

from csm.data.block_cache import BLOCK, BlockCache
from csm.data.folder import FileInfo, check_size, missing_file_error
from csm.data.sample import REMEDY
from csm.files import sha256_of, write_atomically

log = logging.getLogger(__name__)

_ATTEMPTS = 7
_FIRST_DELAY = 0.5  # seconds; doubled after each failure, half a minute in total

_T = TypeVar("_T")


class RemoteFolder:
    """A dataset folder at an fsspec URL, with the methods of LocalFolder. Works in forked and spawned processes.

    cache_dir:   on this node's disk; downloaded files go to `files/`, blocks of shards to `blocks/`
    cache_bytes: limit for the blocks; below the size of one window of shards, blocks are fetched repeatedly

    Raises ValueError if the URL's protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str, cache_dir: Path, cache_bytes: int) -> None:
        self.url = url.rstrip("/")
        self._files = cache_dir / "files"
        self._blocks = BlockCache(cache_dir / "blocks", cache_bytes)
        self._checked: set[str] = set()  # shards whose remote size is known to be right
        self._opened: tuple[int, Any, str] | None = None  # process, file system, path of the folder in it
        self._filesystem()

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read_text(self, name: str) -> str | None:
        try:
            return self._try(name, "", lambda fs, path: fs.cat_file(path)).decode()
        except FileNotFoundError:
            return None

    def find(self, name: str) -> Path | None:
        local = self._files / name
        if not local.exists():
            try:
                self._fetch(name, local, lambda temporary: None)
            except FileNotFoundError:
                return None
        return local

    def local_copy(self, file: FileInfo) -> Path:
        local = self._files / f"{file.sha256[:32]}-{file.name}"
        if not local.exists():
            self._fetch(file.name, local, partial(self._check_copy, file))
        return local

    def check_shards(self, shards: Sequence[FileInfo]) -> None:
        """Does nothing: thousands of requests would delay the start, so each shard is checked on first read."""

    def read(self, file: FileInfo, offset: int, length: int) -> bytes:
        """`length` bytes of a shard from `offset` on. Raises ValueError or OSError, naming the shard, if it fails."""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        data = b"".join(self._block(file, block) for block in range(first, last + 1))
        start = offset - first * BLOCK
        return data[start : start + length]

    def _block(self, file: FileInfo, block: int) -> bytes:
        data = self._blocks.get(file.sha256, block)
        if data is None:
            self._check_remote_size(file)
            start = block * BLOCK
            end = min(start + BLOCK, file.size)
            data = self._try(file.name, f" bytes {start}..{end - 1}", partial(_read_range, start, end))
            self._blocks.put(file.sha256, block, data)
        return data

    def _check_remote_size(self, file: FileInfo) -> None:
        if file.name in self._checked:
            return
        size = self._try(file.name, "", lambda fs, path: fs.size(path))
        if size is not None:  # some servers do not tell
            check_size(self.where(file.name), size, file.size)
        self._checked.add(file.name)

    def _check_copy(self, file: FileInfo, temporary: Path) -> None:
        where = self.where(file.name)
        check_size(where, temporary.stat().st_size, file.size)
        if sha256_of(temporary) != file.sha256:
            raise ValueError(f"{where}: not the file named in dataset.json (content differs); restore it, or {REMEDY}")

    def _fetch(self, name: str, local: Path, check: Callable[[Path], None]) -> None:
        """Downloads a file to `local`, once for all processes of the node."""

        def write(temporary: Path) -> None:
            self._try(name, "", lambda fs, path: fs.get_file(path, str(temporary)))
            check(temporary)

        local.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{local}.lock"):
            if not local.exists():
                write_atomically(local, write)

    def _try(self, name: str, what: str, call: Callable[[Any, str], _T]) -> _T:
        """Result of `call(file system, path of the file)`, with up to `_ATTEMPTS` attempts.

        what: the part of the file that is read, for messages

        Raises FileNotFoundError, naming the file, at once if it does not exist; OSError after the last attempt.
        """
        where = self.where(name) + what
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                fs, folder = self._filesystem()
                return call(fs, f"{folder}/{name}")
            except Exception as error:  # every file system has error classes of its own
                if isinstance(error, FileNotFoundError) and not is_http_failure(error):
                    raise missing_file_error(self.where(name)) from error
                problem = error.__cause__ if isinstance(error, FileNotFoundError) else error
                if attempt == _ATTEMPTS:
                    raise OSError(f"{where}: cannot be read, {attempt} attempts failed (last: {problem!r})") from error
                delay = _FIRST_DELAY * 2 ** (attempt - 1)
                log.warning("%s: %r; retrying in %.1f s (attempt %d of %d)", where, problem, delay, attempt, _ATTEMPTS)
                time.sleep(delay)
        raise AssertionError("not reached")

    def _filesystem(self) -> tuple[Any, str]:
        """The file system and the folder's path in it, opened once per process: event loops do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                fs, folder = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
            except ImportError as error:
                raise ValueError(f"{self.url}: {error}; pip install 'csm-train[remote]'") from error
            self._opened = (os.getpid(), fs, folder.rstrip("/"))
        return self._opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def is_http_failure(error: FileNotFoundError) -> bool:
    """Whether the cause is not a missing file: asked for a size, fsspec's HTTP file system reports any error as one."""
    cause = error.__cause__
    return isinstance(cause, aiohttp.ClientError | asyncio.TimeoutError) and getattr(cause, "status", None) != 404


def _read_range(start: int, end: int, fs: Any, path: str) -> bytes:
    data = fs.cat_file(path, start=start, end=end)
    if len(data) != end - start:
        raise OSError(f"got {len(data)} bytes of {end - start}")
    return data
