"""The output folder: built under a temporary name, and renamed once it is complete.

However a run ends, `<output>` is absent, the previous dataset, or the complete new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csm.data.dataset import DATASET_FILE
from csm.files import atomic_directory, exclusive, partial, remove, restore

REPORT_FILE = "report.html"


@contextmanager
def output_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder `<output>.partial` that is renamed to `<output>` if the block ends without an exception.

    Raises:
        ValueError: `output` is a dataset and `overwrite` is not set, or is not a dataset, or another process is
            preparing the same dataset.
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
    """Raises ValueError if `output_folder` would refuse to replace `output`."""
    output = Path(output)
    if not output.exists():
        return
    if (output / DATASET_FILE).is_file():
        if not overwrite and not (output / REPORT_FILE).is_file():
            raise ValueError(
                f"{output}: already holds a prepared dataset, but no report, which `python -m data_prep report "
                f"output={output}` writes; or add overwrite=true to replace it"
            )
        if not overwrite:
            raise ValueError(f"{output}: already holds a prepared dataset; add overwrite=true to replace it")
    elif not output.is_dir() or any(output.iterdir()):
        raise ValueError(f"{output}: exists and is not a prepared dataset; choose another output")
