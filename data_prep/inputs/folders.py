"""Audio files, each paired with the side file of its name (`calls/17.wav`, `calls/17.txt`), in folders and tar files.

Tar files (WebDataset's or any other) are read in place, by offset.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.audio.storage import open_bytes, open_path, retry
from data_prep.inputs.kinds import AUDIO_SUFFIXES, HEADERLESS, headerless_hint, is_audio, suffix_of
from data_prep.inputs.manifest import Entry
from data_prep.inputs.notes import Notes
from data_prep.inputs.pairing import pair_by_name
from data_prep.inputs.side_files import OF_MANY, SIDE_SUFFIXES, parse_many, parse_side_file
from data_prep.inputs.transcripts.annotation import Annotation
from data_prep.reasons import Reason
from data_prep.records import Locator, Rejection

_GZIP = b"\x1f\x8b"


def pair_files(files: dict[str, Locator], notes: Notes) -> Iterator[Entry | Rejection]:
    """Pairs each audio file with its side file: of the same name, else as `pair_by_name` finds it.

    One STM, CTM or RTTM file may describe many recordings, and CHAT names its own. A text without audio is rejected as
    a missing recording, and of two audio files with one side file the second as a copy, so that both appear in the
    report.

    files: name -> where its bytes are
    """
    audio = sorted((name for name in files if is_audio(name)), key=_by_quality)
    sides: dict[str, dict[str, str]] = {}  # stem -> suffix -> name
    for name in sorted(files):
        if suffix_of(name) in SIDE_SUFFIXES:
            sides.setdefault(_stem(name), {})[suffix_of(name)] = name
    paired = pair_by_name(audio, sides)
    lone = sorted(sides.keys() - paired.values())
    bare = set(audio) - paired.keys()
    of_many, used = _read_files_of_many({stem: sides[stem] for stem in lone}, files, bare, notes)
    described: dict[str, str] = {}  # stem of side files -> the audio file they describe
    for name in audio:
        stem = paired.get(name)
        if stem is None:
            yield _entry(name, files, of_many.get(name, Annotation(None)), notes)
        elif stem in described:
            message = f"{sides[stem][next(iter(sides[stem]))]} describes {described[stem]}, which has the same name"
            yield Rejection(audio=name, reason=Reason.duplicate_file, message=message)
        else:
            described[stem] = name
            yield _annotated(name, files, sides[stem], notes)
    for stem in lone:
        for suffix, side in sides[stem].items():
            if side in used:
                continue
            if suffix == ".json":
                notes.put_aside([side], ".json (no audio file of that name)")
                continue
            notes.without_audio.append(side)
            if side == _first(sides[stem]):
                message = f"{side} describes it, but there is no audio file of that name"
                yield Rejection(audio=stem, reason=Reason.audio_missing, message=message)
    for name in sorted(files):
        if suffix_of(name) in HEADERLESS:
            yield Rejection(audio=name, reason=Reason.audio_corrupt, message=headerless_hint(name))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _by_quality(name: str) -> tuple[str, int]:
    """Of two audio files with one name, the one without loss comes first."""
    return _stem(name), AUDIO_SUFFIXES.index(suffix_of(name))


def _first(sides: dict[str, str]) -> str:
    return next(sides[suffix] for suffix in SIDE_SUFFIXES if suffix in sides)


def _annotated(name: str, files: dict[str, Locator], sides: dict[str, str], notes: Notes) -> Entry | Rejection:
    """The recording with its first side file that annotates anything; the others are noted."""
    found = Annotation(None)
    for suffix in (suffix for suffix in SIDE_SUFFIXES if suffix in sides):
        side = sides[suffix]
        if found.turns is not None:
            notes.put_aside([side], f"{suffix} (another side file of the recording counts)")
            continue
        try:
            found = parse_side_file(suffix, _content(files[side]), PurePosixPath(name).stem)
        except ValueError as error:
            return Rejection(audio=name, reason=Reason.bad_annotation, message=f"{side}: {error}")
        except OSError as error:
            return Rejection(audio=name, reason=Reason.failed, message=f"{side}: {error}")
        if found.turns is None and found.group is None and found.split is None:
            notes.put_aside([side], f"{suffix} (neither turns nor a text in it)")
    return _entry(name, files, found, notes)


def _entry(name: str, files: dict[str, Locator], found: Annotation, notes: Notes) -> Entry:
    if found.remark:
        notes.remark(found.remark, name)
    if found.unused:
        notes.not_used(found.unused, name)
    return Entry(
        audio=name,
        locator=files[name],
        id=name,
        group=found.group,
        default_group=found.speaker,
        split=found.split,
        turns=found.turns,
        lang=found.lang,
        dnsmos=found.dnsmos,
        sides=found.sides,
    )


def _read_files_of_many(
    lone: dict[str, dict[str, str]], files: dict[str, Locator], audio: set[str], notes: Notes
) -> tuple[dict[str, Annotation], set[str]]:
    """Annotations of audio files without a side file of their own, from files that name many -> and the files used."""
    by_stem: dict[str, list[str]] = {}
    for name in audio:
        by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
        by_stem.setdefault(_stem(name), []).append(name)
    annotated: dict[str, Annotation] = {}
    used: set[str] = set()
    order = [(suffix, sides[suffix]) for suffix in OF_MANY for sides in lone.values() if suffix in sides]
    for suffix, side in order:
        try:
            rows = parse_many(suffix, _content(files[side]), by_stem.keys())
        except ValueError:
            continue  # named as an annotation without audio
        found = {file: set(by_stem.get(file, [])) for file in rows}
        if not any(found.values()):
            continue
        used.add(side)
        for file, names in found.items():
            if len(names) != 1:
                notes.without_audio.append(f"{side}: {file}")
            elif annotated.setdefault(name := names.pop(), rows[file]) is not rows[file]:
                notes.not_used("further annotations of one recording", f"{side}: {name}")
    return annotated, used


def _content(locator: Locator) -> bytes:
    def read() -> bytes:
        with open_bytes(locator) as file:
            return file.read()

    return retry(read, locator)


def read_tar(path: str, name: str, notes: Notes) -> Iterator[Entry | Rejection]:
    """Recordings of an uncompressed tar file; `name` is its path relative to the source, and the prefix of their names.

    A damaged tar file is itself rejected; members before the damage are used. Of two members with the same name the
    later one counts, as when unpacking.
    """
    files, damage = tar_members(path, name)
    if damage:
        message = f"{path}: damaged after {len(files)} members ({damage})"
        yield Rejection(audio=name, reason=Reason.audio_corrupt, message=message)
    unused = [file for file in files if not is_audio(file) and suffix_of(file) not in (*SIDE_SUFFIXES, *HEADERLESS)]
    notes.put_aside(unused)
    yield from pair_files(files, notes)


def tar_members(path: str, name: str) -> tuple[dict[str, Locator], str]:
    """Regular members of a tar file, `<name>/<member>` -> where its bytes are, and what is damaged, or ""."""
    files: dict[str, Locator] = {}
    with open_path(path) as file:
        if file.read(len(_GZIP)) == _GZIP:
            return files, "it is compressed: unpack it first, since only uncompressed tar files are read in place"
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        files[f"{name}/{member.name}"] = Locator(path, member.offset_data, member.size)
                file.seek(tar.offset)
                if any(file.read(tarfile.BLOCKSIZE)):  # tarfile stops at an invalid header without an error
                    return files, f"no header at byte {tar.offset}"
        except tarfile.TarError as error:
            return files, str(error)
    return files, ""
