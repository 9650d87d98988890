"""The output folder: built under another name, and renamed once it is complete.

Whatever ends a run early, `<output>` is either absent, or the dataset that was there before, or the new one whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csm.data.dataset import DATASET_FILE
from csm.files import sync


@contextmanager
def output_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder `<output>.partial` that becomes `<output>` if the block ends without an error.

    What an earlier, interrupted run left there is cleared first.

    Raises:
        ValueError: `output` holds a dataset and `overwrite` is not set, or holds something else, or another process
            is preparing the same dataset.
    """
    output = output.absolute()
    partial, old = output.with_name(output.name + ".partial"), output.with_name(output.name + ".old")
    if old.exists() and not output.exists():
        old.rename(output)  # an overwriting run ended between its two renames
    check_replaceable(output, overwrite)
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{output}: another process is preparing this dataset; wait for it to end") from error
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial)
            raise
        sync(partial)
        shutil.rmtree(old, ignore_errors=True)
        if (output / DATASET_FILE).exists():
            output.rename(old)
        partial.rename(output)
        sync(output.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)


def check_replaceable(output: str | Path, overwrite: bool) -> None:
    """Raises ValueError as `output_folder` does, before any work."""
    output = Path(output)
    if not output.exists():
        return
    if (output / DATASET_FILE).is_file():
        if not overwrite:
            raise ValueError(f"{output}: already holds a prepared dataset; add overwrite=true to replace it")
    elif not output.is_dir() or any(output.iterdir()):
        raise ValueError(f"{output}: exists and is not a prepared dataset; choose another output")
