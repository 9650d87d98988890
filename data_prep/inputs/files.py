"""Listings of folders, globs and fsspec URLs."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import fsspec

from data_prep.audio.storage import is_url

_GLOB = "*?["


@dataclass
class Files:
    """Files below `root`, a local folder (absolute) or a URL; names are relative to it, sorted, parts joined by /."""

    root: str
    names: list[str]
    folder: bool  # a whole folder was asked for, not files by name
    special: list[str] = field(default_factory=list)  # names of FIFOs, sockets and devices, which are not opened

    def path(self, name: str) -> str:
        return f"{self.root}{'' if self.root.endswith('/') else '/'}{name}"  # roots: "/", "memory://"


def list_files(source: str) -> Files:
    """Lists all files below a folder, those that a glob matches (`**` crosses folders), or the one file named.

    Names that are not UTF-8 contain surrogate escapes. Links to folders are followed; each folder is listed once.

    Raises:
        FileNotFoundError: nothing has this name.
        ValueError: the URL's protocol is unknown or its package is not installed.
        OSError: the storage fails.
    """
    files = _list_url(source) if is_url(source) else _list_local(source)
    if files is None:
        raise _no_such_input(source)
    files.names.sort()
    return files


def check_exists(source: str) -> None:
    """Raises FileNotFoundError unless there is such a folder or file; globs and URLs are not looked up."""
    path = os.path.expanduser(source)
    if not is_url(source) and not any(sign in source for sign in _GLOB) and not os.path.exists(path):
        raise _no_such_input(source)


def _no_such_input(source: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{source}: no such input; give a folder, a manifest (.jsonl or .parquet), .tar or .parquet files"
    )


def neighbors(files: Files) -> list[str]:
    """Names of everything in the folders of the files: side files, which a glob for audio does not match."""
    found = []
    for folder in sorted({name.rpartition("/")[0] for name in files.names}):
        path = files.path(folder) if folder else files.root
        if is_url(path):
            fs, inside = fsspec.core.url_to_fs(path)
            names = [name.rpartition("/")[2] for name in fs.ls(inside, detail=False)]
        else:
            names = os.listdir(path)
        found += [f"{folder}/{name}" if folder else name for name in sorted(names)]
    return found


def _list_local(source: str) -> Files | None:
    path = os.path.abspath(os.path.expanduser(source))
    if os.path.isdir(path):
        names = list(_walk(path))
        special = [name for name in names if is_special(os.path.join(path, name))]
        return Files(path, sorted(set(names) - set(special)), folder=True, special=sorted(special))
    if is_special(path):
        raise ValueError(f"{source}: not a file, but a FIFO, a socket or a device; save what it gives as a file first")
    if os.path.isfile(path):
        return Files(os.path.dirname(path), [os.path.basename(path)], folder=False)
    root = _fixed_part(path)
    found = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
    return Files(root, [os.path.relpath(file, root) for file in found], folder=False) if found else None


def _walk(root: str) -> Iterator[str]:
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # of two links to one folder, always the same is followed
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in files)


def is_special(path: str) -> bool:
    """Whether reading a path could wait for ever. A dangling link is none: its recording is missing."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _raise(error: OSError) -> None:
    raise error


def _list_url(source: str) -> Files | None:
    try:
        fs, path = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise ValueError(f"{source}: {error}; pip install 'csm-train[remote]'") from error
    if any(sign in source for sign in _GLOB):
        root, folder = _fixed_part(path), False
        found = [file for file in fs.glob(path) if fs.isfile(file)]
    elif fs.isfile(path):
        root, folder, found = path.rpartition("/")[0], False, [path]
    else:
        root, folder = path.rstrip("/"), True
        found = list(fs.find(path))
    names = [file[len(root) :].lstrip("/") for file in found]
    return Files(fs.unstrip_protocol(root), names, folder) if found else None


def _fixed_part(pattern: str) -> str:
    """The folder before the first part of a path that holds a wildcard."""
    parts = pattern.split("/")
    fixed = next((i for i, part in enumerate(parts) if any(sign in part for sign in _GLOB)), len(parts) - 1)
    return "/".join(parts[:fixed]) or "/"
