"""Files that exist whole or not at all, the hashes that prove it, and JSON Lines."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of libraries written in Rust


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
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


def write_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Writes tensors as one safetensors file, atomically. Raises OSError if the storage fails, as for a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # imports torch

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            number = _OS_ERROR.search(str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error

    write_atomically(path, write)


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


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line from 1, its value) for every line of a JSON Lines file in UTF-8; empty lines are skipped.

    Lines end at line feeds alone: U+2028 and the like, at which `str.splitlines` cuts too, may occur in JSON strings.
    A byte order mark, which Windows programs write, is accepted. Raises FileNotFoundError, or ValueError naming file
    and line.
    """
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from None
        yield number, value
