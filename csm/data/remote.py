"""Datasets behind fsspec URLs (s3://, gs://, hf://, https://, memory://, ...).

Index and codec are fetched whole and checked by size and hash; shards are read by ranges of one block through a cache
of bounded size (csm/data/block_cache.py). What fails is tried again a few times, with a warning each time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import fsspec
from filelock import FileLock

from csm.data.block_cache import BLOCK, BlockCache
from csm.data.folder import FileInfo, check_size, ends_early, missing
from csm.data.sample import REMEDY
from csm.files import sha256_of, write_atomically

log = logging.getLogger(__name__)

_ATTEMPTS = 7
_FIRST_DELAY = 0.5  # seconds; doubled after each failure: half a minute in all

_T = TypeVar("_T")


class RemoteFolder:
    """A dataset folder (see DatasetFolder) at an fsspec URL.

    cache_dir: on this node's disk; whole files go to `files/`, blocks of shards to `blocks/`
    cache_bytes: bound on the blocks; should hold a window of shards, or they are fetched more than once an epoch

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

    def description(self, name: str) -> str | None:
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

    def whole(self, file: FileInfo) -> Path:
        local = self._files / f"{file.sha256[:32]}-{file.name}"
        if not local.exists():
            self._fetch(file.name, local, partial(self._check_whole, file))
        return local

    def check_shards(self, shards: list[FileInfo]) -> None:
        """Each shard is checked when it is first read: thousands of requests would delay the start."""

    def read(self, file: FileInfo, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        data = b"".join(self._block(file, block) for block in range(first, last + 1))
        start = offset - first * BLOCK
        if len(data) < start + length:
            raise ends_early(self.where(file.name))
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
        if size is not None:  # some servers do not say
            check_size(self.where(file.name), size, file.size)
        self._checked.add(file.name)

    def _check_whole(self, file: FileInfo, temporary: Path) -> None:
        where = self.where(file.name)
        check_size(where, temporary.stat().st_size, file.size)
        if sha256_of(temporary) != file.sha256:
            raise ValueError(f"{where}: not the file named in dataset.json (other content); restore it, or {REMEDY}")

    def _fetch(self, name: str, local: Path, check: Callable[[Path], None]) -> None:
        """Copies a remote file to `local`, once for all processes of the node."""

        def write(temporary: Path) -> None:
            self._try(name, "", lambda fs, path: fs.get_file(path, str(temporary)))
            check(temporary)

        local.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{local}.lock"):
            if not local.exists():
                write_atomically(local, write)

    def _try(self, name: str, what: str, call: Callable[[Any, str], _T]) -> _T:
        """`call(file system, path of the file)`, again after a failure, up to `_ATTEMPTS` times.

        Raises FileNotFoundError, naming the file, at once if there is none; OSError after the last attempt.
        """
        where = self.where(name) + what
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                fs, folder = self._filesystem()
                return call(fs, f"{folder}/{name}")
            except Exception as error:  # each file system raises errors of its own
                if isinstance(error, FileNotFoundError) and not is_http_failure(error):
                    raise missing(self.where(name)) from error
                problem = error.__cause__ if isinstance(error, FileNotFoundError) else error
                if attempt == _ATTEMPTS:
                    raise OSError(f"{where}: cannot be read, tried {attempt} times (last: {problem!r})") from error
                delay = _FIRST_DELAY * 2 ** (attempt - 1)
                log.warning("%s: %r; trying again in %.1f s (%d of %d)", where, problem, delay, attempt, _ATTEMPTS)
                time.sleep(delay)
        raise AssertionError("not reached")

    def _filesystem(self) -> tuple[Any, str]:
        """The file system of this process: those that run an event loop do not survive forking."""
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
    """fsspec's HTTP file system says "not found" when asked for a size, whatever went wrong."""
    cause = error.__cause__
    return isinstance(cause, aiohttp.ClientError | asyncio.TimeoutError) and getattr(cause, "status", None) != 404


def _read_range(start: int, end: int, fs: Any, path: str) -> bytes:
    data = fs.cat_file(path, start=start, end=end)
    if len(data) != end - start:
        raise OSError(f"{len(data)} bytes came instead of {end - start}")
    return data
