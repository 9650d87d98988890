"""The recordings of a source, whatever its form."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from data_prep.config import SourceConfig
from data_prep.inputs.files import Files, list_files, neighbors
from data_prep.inputs.folders import is_audio, pair_files, read_tar
from data_prep.inputs.manifest import Entry, read_jsonl
from data_prep.inputs.parquet import read_table
from data_prep.inputs.side_files import SIDE_SUFFIXES
from data_prep.reasons import Reason
from data_prep.records import Locator, Recording, Rejection

log = logging.getLogger(__name__)

STAGE = "plan"
TWO_CHANNEL = ("auto", "yes", "no")
_YAML = ("True", "False")
_FOLDER_KINDS: tuple[str, ...] = ("audio", "tar", "parquet")  # of files that a folder is searched for
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")


def read_source(name: str, cfg: SourceConfig) -> Iterator[Recording | Rejection]:
    """Yields the recordings of the source `name`, in no particular order, without decoding anything.

    A recording whose annotation or name cannot be read is yielded as a `Rejection` with its reason.

    Raises:
        FileNotFoundError: there is no such input.
        ValueError: a manifest is malformed (the message names file, line and field), two recordings have the same id,
            an option is invalid, or there are no recordings at all.
        OSError: the storage fails.
    """
    group_of = _group_pattern(name, cfg)
    if cfg.two_channel not in TWO_CHANNEL:
        words = ", ".join(TWO_CHANNEL)
        hint = "; quote yes and no, which YAML otherwise reads as true and false" if cfg.two_channel in _YAML else ""
        raise ValueError(f"source {name}: two_channel={cfg.two_channel} must be one of {words}{hint}")
    seen: set[str] = set()
    empty = True
    for entry in _entries(cfg):
        empty = False
        if isinstance(entry, Entry):
            entry = _check_utf8(entry)
        if isinstance(entry, Rejection):
            audio, message = _printable(entry.audio), _printable(entry.message)
            yield replace(entry, source=name, recording=f"{name}/{audio}", audio=audio, stage=STAGE, message=message)
            continue
        if entry.id in seen:
            raise ValueError(f"{cfg.input}: two recordings have the id {entry.id!r}; give each its own")
        seen.add(entry.id)
        recording_id = f"{name}/{entry.id}"
        yield Recording(
            id=recording_id,
            source=name,
            audio=entry.audio,
            locator=entry.locator,
            group=entry.group or group_of(entry.audio) or entry.default_group or recording_id,
            split=entry.split,
            lang=cfg.lang,
            licence=cfg.licence,
            turns=entry.turns,
            two_channel=cfg.two_channel,
        )
    if empty:
        raise ValueError(f"{cfg.input}: holds no recordings")


def _entries(cfg: SourceConfig) -> Iterator[Entry | Rejection]:
    files = list_files(cfg.input)
    by_kind: dict[str, list[str]] = {}
    for name in files.names:
        by_kind.setdefault(_kind(name), []).append(name)
    if not files.folder:
        side = [] if "audio" in by_kind else by_kind.get("side", [])
        odd = by_kind.get("other", []) + by_kind.get("compressed", []) + side
        if odd:
            raise ValueError(
                f"{files.path(_printable(odd[0]))}: not a supported input; give a folder, a manifest (.jsonl or "
                ".parquet), audio files, .tar (uncompressed: they are read in place) or .parquet files"
            )
        used = [kind for kind in (*_FOLDER_KINDS, "jsonl") if kind in by_kind]
    else:  # the first kind found is the input: a table next to audio files is something else
        used = [kind for kind in _FOLDER_KINDS if kind in by_kind][:1]
        if not used:
            hint = f"; give input={files.path(by_kind['jsonl'][0])}" if "jsonl" in by_kind else ""
            raise ValueError(f"{cfg.input}: holds no audio files, .tar or .parquet files{hint}")
        _warn_of_ignored_files(cfg.input, files, used[0])
    for kind in used:
        if kind == "audio":
            names = by_kind["audio"] + by_kind.get("side", [])
            if not files.folder:
                stems = {PurePosixPath(name).with_suffix("") for name in names}
                same_stem = [name for name in neighbors(files) if PurePosixPath(name).with_suffix("") in stems]
                names += [name for name in same_stem if _kind(name) == "side" and name not in by_kind.get("side", [])]
            yield from pair_files({name: Locator(files.path(name)) for name in names}, cfg.input)
            continue
        for name in by_kind[kind]:
            if kind == "tar":
                yield from read_tar(files.path(name), name)
            elif kind == "parquet":
                yield from read_table(files.path(name), name, cfg.text_column)
            else:
                yield from read_jsonl(files.path(name))


def _kind(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if is_audio(name):
        return "audio"
    if suffix in SIDE_SUFFIXES:
        return "side"
    if _COMPRESSED.search(name.lower()):
        return "compressed"
    return suffix[1:] if suffix in (".tar", ".parquet", ".jsonl") else "other"


def _warn_of_ignored_files(source: str, files: Files, used: str) -> None:
    kinds = (used, "side") if used == "audio" else (used,)
    ignored = Counter(PurePosixPath(_printable(name)).suffix for name in files.names if _kind(name) not in kinds)
    if ignored:
        listed = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common(10))
        log.warning("%s: read as %s files; files ignored: %s", source, used, listed)


def _group_pattern(name: str, cfg: SourceConfig) -> Callable[[str], str | None]:
    if cfg.group_pattern is None:
        return lambda audio: None
    try:
        pattern = re.compile(cfg.group_pattern)
    except re.error as error:
        raise ValueError(
            f"source {name}: group_pattern={cfg.group_pattern!r} is not a regular expression ({error})"
        ) from error
    if pattern.groups != 1:
        raise ValueError(f"source {name}: group_pattern={cfg.group_pattern!r} must contain one group in parentheses")

    def group_of(audio: str) -> str | None:
        match = pattern.search(audio)
        return match[1] if match else None

    return group_of


def _check_utf8(entry: Entry) -> Entry | Rejection:
    """Rejects an entry with a file name or text that is not valid UTF-8, which tables and shards cannot store."""
    names = (entry.audio, entry.id, entry.locator.path)
    if not all(map(_is_utf8, names)):
        return Rejection(audio=entry.audio, reason=Reason.bad_name, message="its name is not UTF-8; rename it")
    texts = [entry.group or "", *(turn.speaker + (turn.text or "") for turn in entry.turns or ())]
    if not all(map(_is_utf8, texts)):
        message = "its annotation contains invalid Unicode"
        return Rejection(audio=entry.audio, reason=Reason.bad_annotation, message=message)
    return entry


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    r"""A name that may not be UTF-8, with invalid bytes as \udcNN."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
