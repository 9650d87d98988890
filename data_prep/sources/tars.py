"""Tar files of audio and side files (as WebDataset writes them, or any other): read in place, by offset."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from data_prep.audio.storage import open_path
from data_prep.reasons import Reason
from data_prep.records import Locator
from data_prep.sources.entry import BadEntry, Entry
from data_prep.sources.folder import pair_files


def read_tar(path: str, name: str) -> Iterator[Entry | BadEntry]:
    """Recordings of an uncompressed tar file; `name` is its path relative to the source, the first part of theirs.

    A tar file that is damaged is listed as a bad entry itself; members before the damage are used. Of two members
    with one name the later counts, as when it is unpacked.
    """
    files: dict[str, Locator] = {}
    damage = ""
    with open_path(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        files[f"{name}/{member.name}"] = Locator(path, member.offset_data, member.size)
                file.seek(tar.offset)
                if any(file.read(tarfile.BLOCKSIZE)):  # what is no header ends the list without an error
                    damage = f"no header at byte {tar.offset}"
        except tarfile.TarError as error:
            damage = str(error)
    if damage:
        yield BadEntry(name, Reason.audio_corrupt, f"{path}: damaged after {len(files)} members ({damage})")
    yield from pair_files(files, path)
