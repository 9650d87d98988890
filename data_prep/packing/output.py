"""The output folder: built under another name, and renamed once it is complete.

Whatever ends a run early, `<output>` is either absent, or the dataset that was there before, or the new one whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csm.data.dataset import DATASET_FILE
from csm.files import atomic_directory, exclusive, partial, remove, restore


@contextmanager
def output_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder `<output>.partial` that becomes `<output>` if the block ends without an error.

    Raises:
        ValueError: `output` holds a dataset and `overwrite` is not set, or holds something else, or another process
            is preparing the same dataset.
    """
    output = output.absolute()
    restore(output)
    check_replaceable(output, overwrite)
    temporary = partial(output)
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(temporary):
            try:
                with atomic_directory(output) as folder:
                    yield folder
            except BaseException:
                remove(temporary)
                raise
    except BlockingIOError as error:
        raise ValueError(f"{output}: another process is preparing this dataset; wait for it to end") from error


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
