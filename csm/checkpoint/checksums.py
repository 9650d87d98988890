"""Files of torch.save as zip archives: each record in them has a CRC-32, which torch writes and never looks at."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

REMEDY = "copy it again, or use an earlier checkpoint"
_READ = 1 << 20  # bytes at a time
_DOS_FOLDER = 0x10  # the attribute with which torch takes a record for an empty one


def check_archive(file: Path | BinaryIO) -> None:
    """Reads all records of what torch.save wrote. Raises ValueError, saying what is wrong, if a bit has changed that
    would change what torch.load makes of it."""
    try:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.external_attr & _DOS_FOLDER:
                    raise ValueError(f"the header of its record {record.filename} has changed")
                with archive.open(record) as content:
                    _read_through(content, record.filename)
    # Besides BadZipFile: what zipfile makes of headers with flipped bits (encryption, compression, names, lengths).
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _read_through(content: IO[bytes], name: str) -> None:
    try:
        while content.read(_READ):
            pass
    except zipfile.BadZipFile:
        raise ValueError(f"the content of its record {name} has changed") from None


@contextmanager
def writing() -> Iterator[None]:
    """Within the block torch.save writes to streams of ours; of files of its own it does not say why they failed. What
    keeps a stream from being written leaves the block as the OSError that it was."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # torch's errors come while it deals with the stream's
        if cause is None:
            raise
        raise cause from None


def unwritten(partial: Path, reason: str) -> OSError:
    """The error of a checkpoint that was being written as `partial`."""
    return OSError(
        f"checkpoint {partial.parent / partial.stem} cannot be written ({reason}); the earlier checkpoints are as they "
        "were: make room for it and start again to continue from the last one"
    )
