"""Audio files, each paired with the side file of its name (`calls/17.wav`, `calls/17.txt`), in folders and tar files.

Tar files (WebDataset's or any other) are read in place, by offset.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.audio.storage import open_bytes, open_path, retry
from data_prep.inputs.manifest import Entry
from data_prep.inputs.side_files import SIDE_SUFFIXES, Annotation, parse_side_file
from data_prep.reasons import Reason
from data_prep.records import Locator, Rejection

# fmt: off
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".g722", ".aiff", ".aif", ".webm", ".w64",
    ".caf", ".au", ".wma", ".amr", ".mka", ".mp4",
)
# fmt: on


def is_audio(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


def pair_files(files: dict[str, Locator], where: str) -> Iterator[Entry | Rejection]:
    """Pairs each audio file with its side file, by name.

    A text, STM or RTTM file without audio is rejected as a missing recording, so that it appears in the report.

    files: name -> where its bytes are
    Raises ValueError if two audio files share a side file, which can describe only one of them.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in files}
    audio = [name for name in files if is_audio(name)]
    sides: dict[str, dict[str, str]] = {}  # stem -> suffix -> name
    for name in sorted(files):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SIDE_SUFFIXES:
            sides.setdefault(stems[name], {})[suffix] = name
    with_audio = Counter(stems[name] for name in audio)
    for stem in sorted(sides):
        side = sides[stem][_first_suffix(sides[stem])]
        if with_audio[stem] > 1:
            raise ValueError(f"{where}: two audio files have the name {stem!r} of {side!r}; remove one")
        if with_audio[stem] == 0 and set(sides[stem]) != {".json"}:
            message = f"{side} describes it, but there is no audio file of that name"
            yield Rejection(audio=stem, reason=Reason.audio_missing, message=message)
    for name in sorted(audio):
        if stems[name] not in sides:
            yield Entry(audio=name, locator=files[name], id=name)
            continue
        suffix = _first_suffix(sides[stems[name]])
        side = sides[stems[name]][suffix]
        try:
            found = _read(suffix, files[side], PurePosixPath(name).stem)
        except ValueError as error:
            yield Rejection(audio=name, reason=Reason.bad_annotation, message=f"{side}: {error}")
        except OSError as error:
            yield Rejection(audio=name, reason=Reason.failed, message=f"{side}: {error}")
        else:
            yield Entry(
                audio=name, locator=files[name], id=name, group=found.group, split=found.split, turns=found.turns
            )


def _first_suffix(sides: dict[str, str]) -> str:
    """The suffix of the side file that counts, of those with one name: suffix -> name."""
    return next(suffix for suffix in SIDE_SUFFIXES if suffix in sides)


def _read(suffix: str, locator: Locator, stem: str) -> Annotation:
    def read() -> bytes:
        with open_bytes(locator) as file:
            return file.read()

    return parse_side_file(suffix, retry(read, locator), stem)


def read_tar(path: str, name: str) -> Iterator[Entry | Rejection]:
    """Recordings of an uncompressed tar file; `name` is its path relative to the source, and the prefix of their names.

    A damaged tar file is itself rejected; members before the damage are used. Of two members with the same name the
    later one counts, as when unpacking.
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
                if any(file.read(tarfile.BLOCKSIZE)):  # tarfile stops at an invalid header without an error
                    damage = f"no header at byte {tar.offset}"
        except tarfile.TarError as error:
            damage = str(error)
    if damage:
        message = f"{path}: damaged after {len(files)} members ({damage})"
        yield Rejection(audio=name, reason=Reason.audio_corrupt, message=message)
    yield from pair_files(files, path)
