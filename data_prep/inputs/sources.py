"""The recordings of a source, whatever its form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from csm.languages import language_code
from data_prep.audio.made import count_streams
from data_prep.config import SourceConfig
from data_prep.inputs.files import list_files, neighbors
from data_prep.inputs.folders import pair_files, read_tar
from data_prep.inputs.kinds import CONTAINERS, HEADERLESS, headerless_hint, is_archive, is_audio, suffix_of, unpack_hint
from data_prep.inputs.manifest import Entry, read_jsonl
from data_prep.inputs.merge import merge_lines
from data_prep.inputs.notes import Notes
from data_prep.inputs.parquet import read_table
from data_prep.inputs.pile import Pile
from data_prep.inputs.probe import channels_of
from data_prep.inputs.readers import READERS, is_own_manifest
from data_prep.inputs.side_files import SIDE_SUFFIXES
from data_prep.inputs.splits import TEST, LoneSplit, given_splits, split_named
from data_prep.inputs.transcripts.labels import side_of
from data_prep.reasons import Reason
from data_prep.records import Locator, Made, Recording, Rejection

STAGE = "plan"
TWO_CHANNEL = ("auto", "yes", "no")
_YAML = ("True", "False")
_RARE_LANGUAGE = re.compile(r"[a-z]{3}")  # of ISO 639-3, which has thousands
_NO_LANGUAGE = ("und", "mul", "mis", "zxx")  # ISO 639: undetermined, several, without a code, no speech
FILES, TARS, TABLES, MANIFESTS = "files", "tar", "parquet", "manifest"
FORMATS = (FILES, TARS, TABLES, MANIFESTS, *READERS)
"""Values of the option `format`."""


def read_source(name: str, cfg: SourceConfig, notes: Notes | None = None) -> Iterator[Recording | Rejection]:
    """Yields the recordings of the source `name`, in no particular order, without decoding anything.

    A recording whose annotation or name cannot be read is yielded as a `Rejection` with its reason. Files that are not
    used, and whatever else the user should know, are added to `notes`.

    Raises:
        FileNotFoundError: there is no such input.
        ValueError: a manifest is malformed (the message names file, line and field), two recordings have the same id,
            an option is invalid, or there are no recordings at all.
        OSError: the storage fails.
    """
    notes = notes if notes is not None else Notes()
    group_of = _group_pattern(name, cfg)
    _check_options(name, cfg)
    recordings: list[Recording] = []
    checked = list(_checked(_entries(cfg, notes), cfg, notes))
    entries = [entry for entry in checked if isinstance(entry, Entry)]
    rejections = [entry for entry in checked if isinstance(entry, Rejection)]
    speaker = _only_speaker(entries)
    if speaker is not None:
        notes.remark("the speaker of all recordings, each of which is a group of its own", speaker)
    for entry in entries:
        recording_id = f"{name}/{entry.id}"
        of_speaker = entry.default_group if speaker is None else None
        recording = Recording(
            id=recording_id,
            source=name,
            audio=entry.audio,
            locator=entry.locator,
            group=entry.group or group_of(entry.audio) or of_speaker or recording_id,
            split=entry.split,
            lang=entry.lang or cfg.lang,
            licence=cfg.licence,
            turns=entry.turns,
            two_channel=entry.two_channel or cfg.two_channel,
        )
        recordings.append(recording)
    if not recordings and not rejections:
        raise ValueError(f"{cfg.input}: holds no recordings")
    kept, tests = _without_tests(recordings, notes)
    yield from kept
    for rejection in rejections + tests:
        audio, message = _printable(rejection.audio), _printable(rejection.message)
        yield replace(rejection, source=name, recording=f"{name}/{audio}", audio=audio, stage=STAGE, message=message)


def _only_speaker(entries: list[Entry]) -> str | None:
    """The one speaker of several recordings without splits: as one group, `val_fraction` would draw all or none."""
    speakers = {entry.default_group for entry in entries}
    if len(speakers) > 1 or len(entries) < 2 or any(entry.split for entry in entries):
        return None
    return speakers.pop()


def _without_tests(recordings: list[Recording], notes: Notes) -> tuple[list[Recording], list[Rejection]]:
    """Recordings that are none of the data's tests, and rejections of the others.

    To the tests belongs, too, what has no split, but a group that has tests: another clip of a test's speaker.
    """
    groups = {recording.group for recording in recordings if recording.split == TEST}
    kept: list[Recording] = []
    rejections: list[Rejection] = []
    divided: dict[str, None] = {}
    for recording in recordings:
        audio = recording.id.removeprefix(f"{recording.source}/")
        if recording.split == TEST:
            message = "of the data's own test split"
            rejections.append(Rejection(audio=audio, reason=Reason.test_split, message=message))
        elif recording.group not in groups:
            kept.append(recording)
        elif recording.split is None:
            message = f"without a split, but of the group {recording.group}, which is in the data's own test split"
            rejections.append(Rejection(audio=audio, reason=Reason.test_split, message=message))
            notes.remark("left out without a split, since others of their group are in the test split", audio)
        else:
            kept.append(recording)
            divided[recording.group] = None
    for group in divided:
        notes.remark("groups in the test split and in another, as the data give it", group)
    return kept, rejections


def _checked(entries: Iterable[Entry | Rejection], cfg: SourceConfig, notes: Notes) -> Iterator[Entry | Rejection]:
    """Entries of one file merged, and those rejected that cannot or must not be used."""
    for entry in merge_lines(entries, cfg.input):
        if isinstance(entry, Entry):
            entry = _check_utf8(entry)
        if isinstance(entry, Entry):
            entry = _with_sides(_with_streams(_with_language(entry, notes), notes), cfg, notes)
        if isinstance(entry, Rejection) or entry.split == TEST:
            yield entry
        elif suffix_of(entry.audio) in HEADERLESS:
            yield Rejection(audio=entry.id, reason=Reason.audio_corrupt, message=headerless_hint(entry.audio))
        elif cfg.min_dnsmos is not None and entry.dnsmos is not None and entry.dnsmos < cfg.min_dnsmos:
            message = f"DNSMOS {entry.dnsmos:g} in its annotation is below min_dnsmos={cfg.min_dnsmos:g}"
            yield Rejection(audio=entry.id, reason=Reason.quality, message=message)
        else:
            yield entry


def _with_language(entry: Entry, notes: Notes) -> Entry:
    """An entry whose language is a code, or that of the source where the data give none that can be used."""
    if entry.lang is None or _is_known(entry.lang):
        return entry
    named = f"{entry.id} ({entry.lang})"
    if entry.lang in _NO_LANGUAGE:
        notes.remark(f"recordings without a language ({', '.join(_NO_LANGUAGE)}): taken to be of the source's", named)
        return replace(entry, lang=None)
    if _RARE_LANGUAGE.fullmatch(entry.lang):
        notes.remark("recordings of a language that no recognizer knows by its code, which is kept", named)
        return entry
    several = all(_is_known(part) or _RARE_LANGUAGE.fullmatch(part) for part in entry.lang.split(", "))
    kind = "of several languages" if several else "whose language is not known; give its ISO 639 code"
    notes.not_used(f"recordings {kind}: taken to be of the source's (lang)", named)
    return replace(entry, lang=None)


def _is_known(code: str) -> bool:
    try:
        return language_code(code) == code
    except ValueError:
        return False


def _with_streams(entry: Entry, notes: Notes) -> Entry:
    """A video with several audio streams: each is a channel, with a speaker of its own if there are two."""
    place = entry.locator
    if suffix_of(entry.audio) not in CONTAINERS or place != Locator(place.path):
        return entry
    streams = count_streams(place.path)
    if streams < 2:
        return entry
    notes.remark("files with several audio streams: each stream is a channel", entry.id)
    return replace(
        entry,
        locator=Locator(place.path, made=Made([place.path], streams=True)),
        two_channel=entry.two_channel or ("yes" if streams == 2 else None),
    )


def _with_sides(entry: Entry, cfg: SourceConfig, notes: Notes) -> Entry:
    """The sides A and B of a call, as a transcript names its speakers, are the channels of a two-channel recording."""
    if not entry.sides or cfg.two_channel == "no" or entry.locator.made is not None:
        return entry
    if channels_of(entry.locator, entry.audio) != 2:
        return entry
    notes.remark("speakers A and B of two-channel recordings: the left and the right channel", entry.id)
    return replace(entry, turns=[replace(turn, channel=side_of(turn.speaker)) for turn in entry.turns or []])


def _entries(cfg: SourceConfig, notes: Notes) -> Iterator[Entry | Rejection]:
    pile = Pile(list_files(cfg.input), notes, text_column=cfg.text_column, asked=cfg.format is not None)
    notes.put_aside(pile.files.special, "not a file, but a FIFO, a socket or a device")
    split_of = given_splits(pile.files.names)
    lone = LoneSplit()
    found = False
    for layout, entry in _folder(pile, cfg) if pile.files.folder else _files(pile, cfg):
        found = True
        if isinstance(entry, Entry):
            notes.layouts[layout] += 1
            if entry.split is None:
                entry = replace(entry, split=split_of(entry.table or entry.audio) or split_of(entry.audio))
                lone.add(entry.id, entry.split, split_named(entry.table or entry.audio) or split_named(entry.audio))
        yield entry
    if not found and cfg.format is not None:
        raise ValueError(f"{cfg.input}: holds nothing in the layout format={cfg.format}; docs/data.md names its files")
    lone.tell(notes)
    notes.put_aside(map(_printable, pile.left))


def _folder(pile: Pile, cfg: SourceConfig) -> Iterator[tuple[str, Entry | Rejection]]:
    """Recordings of a folder, each with the name of its layout.

    Readers take what has their shape. Of the rest, the first kind found is read: audio files, tar files, tables.
    """
    for layout, reader in READERS.items():
        if cfg.format in (None, layout):
            yield from ((layout, entry) for entry in reader(pile))
    taken = len(pile.left) < len(pile.files.names)
    if (cfg.format is None and any(map(is_audio, pile.left))) or cfg.format == FILES:
        yield from _audio_files(pile, pile.left)
    elif (cfg.format is None and not taken and pile.named(".tar")) or cfg.format == TARS:
        for name in pile.named(".tar"):
            pile.take([name])
            yield from ((TARS, entry) for entry in read_tar(pile.path(name), name, pile.notes))
    elif (cfg.format is None and not taken and pile.named(".parquet")) or cfg.format == TABLES:
        for name in pile.named(".parquet"):
            pile.take([name])
            yield from ((TABLES, entry) for entry in read_table(pile.path(name), name, cfg.text_column))
    elif cfg.format == MANIFESTS:
        for name in pile.named(".jsonl"):
            pile.take([name])
            yield from ((MANIFESTS, replace(entry, table=name)) for entry in read_jsonl(pile.path(name)))
    elif not taken and cfg.format is None:
        raise ValueError(_no_recordings(pile, cfg.input))


def _files(pile: Pile, cfg: SourceConfig) -> Iterator[tuple[str, Entry | Rejection]]:
    """Recordings of files that were given by name or by a glob, which must all be of a known form."""
    for name in pile.left:
        if is_archive(name) and not name.lower().endswith(".gz"):
            raise ValueError(unpack_hint(pile.path(_printable(name))))
        if suffix_of(name) in HEADERLESS:
            raise ValueError(headerless_hint(pile.path(_printable(name))))
    for name in pile.named(".jsonl"):
        if cfg.format in (None, MANIFESTS) and is_own_manifest(pile, name):
            pile.take([name])
            yield from ((MANIFESTS, replace(entry, table=name)) for entry in read_jsonl(pile.path(name)))
    if not any(map(is_audio, pile.left)) or cfg.format is not None:
        for layout, reader in READERS.items():
            if cfg.format in (None, layout):
                yield from ((layout, entry) for entry in reader(pile))
    if cfg.format in (None, FILES) and any(map(is_audio, pile.left)):
        stems = {PurePosixPath(name).with_suffix("") for name in pile.left if is_audio(name)}
        beside = [name for name in neighbors(pile.files) if PurePosixPath(name).with_suffix("") in stems]
        sides = [name for name in beside if suffix_of(name) in SIDE_SUFFIXES]
        yield from _audio_files(pile, dict.fromkeys([*pile.left, *sides]))
    for name in pile.named(".tar") if cfg.format in (None, TARS) else []:
        pile.take([name])
        yield from ((TARS, entry) for entry in read_tar(pile.path(name), name, pile.notes))
    for name in pile.named(".parquet") if cfg.format in (None, TABLES) else []:
        pile.take([name])
        yield from ((TABLES, entry) for entry in read_table(pile.path(name), name, cfg.text_column))
    for name in pile.left if cfg.format is None else []:
        if is_archive(name):
            raise ValueError(unpack_hint(pile.path(_printable(name))))
        raise ValueError(
            f"{pile.path(_printable(name))}: not a supported input; give a folder, a manifest (.jsonl or .parquet), "
            "audio files, .tar (uncompressed: they are read in place) or .parquet files"
        )


def _audio_files(pile: Pile, names: Iterable[str]) -> Iterator[tuple[str, Entry | Rejection]]:
    used = [name for name in names if is_audio(name) or suffix_of(name) in (*SIDE_SUFFIXES, *HEADERLESS)]
    pile.take(used)
    entries = pair_files({name: Locator(pile.path(name)) for name in used}, pile.notes)
    yield from ((FILES, entry) for entry in entries)


def _no_recordings(pile: Pile, source: str) -> str:
    message = f"{source}: holds no audio files, .tar or .parquet files"
    archives = [name for name in pile.left if is_archive(name)]
    if pile.named(".jsonl"):
        return f"{message}; give input={pile.path(pile.named('.jsonl')[0])}"
    return f"{message}; {unpack_hint(pile.path(archives[0]))}" if archives else message


def _check_options(name: str, cfg: SourceConfig) -> None:
    if cfg.two_channel not in TWO_CHANNEL:
        words = ", ".join(TWO_CHANNEL)
        hint = "; quote yes and no, which YAML otherwise reads as true and false" if cfg.two_channel in _YAML else ""
        raise ValueError(f"source {name}: two_channel={cfg.two_channel} must be one of {words}{hint}")
    if cfg.format is not None and cfg.format not in FORMATS:
        raise ValueError(f"source {name}: format={cfg.format} must be one of {', '.join(FORMATS)}")


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
