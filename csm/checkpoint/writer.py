"""Writing training checkpoints: their names, the background thread, and how a finished one takes its place.

    last.ckpt           the newest
    previous.ckpt       the one before it, in case the newest is damaged
    best.ckpt           lowest val/loss
    step-0010000.ckpt   every trainer.keep_every_steps, kept for good

A checkpoint is a file or, with sharded strategies, a folder. It is written as last.ckpt.partial and renamed when it is
whole and on the disk. A kill at any moment leaves last.ckpt or previous.ckpt intact (csm/checkpoint/resume.py looks for
both). The other names are hard links: they cost no second write.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from csm.checkpoint.checksums import unwritten, writing
from csm.files import partial, remove, sync

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class CheckpointWriter:
    """Runs file tasks one after another, in a thread of their own if `background`.

    In the background a save costs training the time of a copy to host memory; the next save waits for this one. A
    failed task raises nothing here, since other ranks would wait forever for the one that writes: it sets `error`,
    which all ranks learn of at the next step, and nothing more is written.
    """

    def __init__(self, background: bool) -> None:
        self.error: OSError | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future[None] | None = None

    def save(self, content: dict[str, Any], path: Path) -> None:
        """Writes one file."""
        self.wait()  # never two copies in memory
        if self._thread:
            content = apply_to_collection(content, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
        self.run(lambda: _write(content, path))

    def run(self, task: Callable[[], object]) -> None:
        """Runs `task` once everything handed in before is done, if all of it succeeded."""

        def guarded() -> None:
            if self.error is None:
                try:
                    task()
                except OSError as error:
                    self.error = error

        if self._thread:
            self._pending = self._thread.submit(guarded)
        else:
            guarded()

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises anything but OSError: a bug, not a full disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class CheckpointFolder:
    """The checkpoints of one run on rank 0. newest: the one that holds the state of training, if there is any."""

    def __init__(self, folder: Path, writer: CheckpointWriter, newest: Path | None = None) -> None:
        self.folder, self.writer = folder.resolve(), writer
        self.newest = newest and newest.resolve()

    @property
    def temporary(self) -> Path:
        """Where the next checkpoint is to be written."""
        return partial(self.folder / LAST)

    def clear(self) -> None:
        """Makes room for the next checkpoint."""

        def make_place() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove(self.temporary)

        self.writer.run(make_place)
        self.writer.wait()

    def publish(self, keep_as: str | None) -> None:
        """Makes the checkpoint at `temporary` the last one; `keep_as` is a second name for it."""
        # What training did not continue from is another run's, or damaged: it does not become the previous one.
        before, last, temporary = self.newest, self.folder / LAST, self.temporary
        if keep_as is not None:
            self.writer.run(lambda: _link(temporary, self.folder / keep_as))
        self.writer.run(lambda: _publish(temporary, last, before))
        self.newest = last

    def mark_best(self) -> None:
        newest = self.newest
        assert newest is not None, "the best checkpoint is marked after it was saved"
        self.writer.run(lambda: _link(newest, self.folder / BEST))


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as stream, writing():
            torch.save(checkpoint, stream)
    except OSError as error:
        raise unwritten(path, str(error.strerror)) from error


def _publish(temporary: Path, last: Path, before: Path | None) -> None:
    """Makes `temporary` the last checkpoint and `before`, if it is the last or the previous one, the previous one."""
    previous = last.with_name(PREVIOUS)
    _sync_all(temporary)
    if before == last:
        _move(last, previous)
    elif before != previous:
        remove(previous)
    _move(temporary, last)
    sync(last.parent)


def _link(checkpoint: Path, name: Path) -> None:
    """Gives a checkpoint another name, in place of what had it. Where the disk has no hard links it is copied."""
    temporary = partial(name)
    remove(temporary)
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, temporary, copy_function=_link_file)
    else:
        _link_file(checkpoint, temporary)
    _move(temporary, name)
    sync(name.parent)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _move(source: Path, target: Path) -> None:
    """Renames in place of what `target` was: in one instant for files; a folder is removed first."""
    if target.is_dir() or source.is_dir():
        remove(target)
    os.replace(source, target)


def _sync_all(path: Path) -> None:
    for inner in path.rglob("*") if path.is_dir() else ():
        sync(inner)
    sync(path)
