"""Files that exist whole or not at all, and the hashes that prove it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hash of a file's content, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Forces a written file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write(temporary)` for a file beside `path`, then moves it into place: write, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    try:
        write(temporary)
        sync(temporary)
        _move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _move_into_place(temporary: Path, path: Path) -> None:
    """A file replaces a file at once; a folder, on either side, leaves its name in between (`atomic_directory`)."""
    if path.is_dir() or (temporary.is_dir() and path.exists()):
        os.rename(path, _old(path))
        os.rename(temporary, path)
        remove(_old(path))
    else:
        os.replace(temporary, path)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def partial(path: Path) -> Path:
    """Where `path` is written until it is whole."""
    return path.with_name(path.name + ".partial")


def restore(path: Path) -> None:
    """Brings back the folder that an interrupted replacement has moved aside."""
    if _old(path).exists() and not path.exists():
        os.rename(_old(path), path)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder. Raises BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that replaces it when the block ends without an error.

    Whoever looks at `path` finds the old folder or the new one, whole; an interruption leaves `<path>.partial`,
    which nothing reads and the next attempt removes.
    """
    temporary = partial(path)
    restore(path)
    remove(_old(path))
    temporary.mkdir(parents=True, exist_ok=True)  # not removed: a caller may hold its lock
    for entry in temporary.iterdir():
        remove(entry)
    yield temporary
    for file in temporary.rglob("*"):
        sync(file)
    _move_into_place(temporary, path)
    sync(path.parent)
