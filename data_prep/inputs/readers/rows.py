"""Tables and JSON lines with a row for each segment or file, told apart by the names of their columns.

    nemo          audio_filepath, text, offset, duration, speaker
    emilia        wav, text, speaker, language, dnsmos
    common_voice  path, sentence, client_id, locale; train.tsv, dev.tsv and test.tsv are splits, of invalidated.tsv
                  nothing is used
    audiofolder   file_name and any column of text: metadata.csv, .tsv or .jsonl
    spans         a path or URL, start and end; with a text they are turns, without one recordings of their own

Rows of one file become its turns. A row without times is one turn over the whole file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from data_prep.inputs.kinds import suffix_of
from data_prep.inputs.manifest import Entry, parse_split
from data_prep.inputs.pile import Pile
from data_prep.inputs.transcripts.json_text import ONE_SPEAKER, SPEAKER_KEYS, finite, first_of, language, seconds
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator, Made, Rejection

LAYOUTS = ("nemo", "emilia", "common_voice", "audiofolder", "spans")
SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".json.gz", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
TEXTS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text")

_INVALID = "invalidated.tsv"  # of Common Voice

_AUDIO = (
    "audio_filepath",
    "wav",
    "file_name",
    "path",
    "audio",
    "audio_path",
    "file",
    "filename",
    "wav_path",
    "url",
    "audio_url",
)
_START = ("start", "offset", "begin", "start_time", "start_sec", "episode_start_sec")
_END = ("end", "stop", "end_time", "end_sec", "episode_end_sec")
_SPEAKERS = (*SPEAKER_KEYS, "client_id", "speaker_name")


def reader(layout: str) -> Callable[[Pile], Iterator[Entry | Rejection]]:
    """The reader of one of LAYOUTS."""

    def read(pile: Pile) -> Iterator[Entry | Rejection]:
        for name in [name for name in pile.left if suffix_of(name) in SUFFIXES]:
            if layout_of(pile, name) == layout:
                pile.take([name])
                yield from _read(pile, name)

    return read


def layout_of(pile: Pile, name: str) -> str | None:
    """The one of LAYOUTS that a table has, by its first row, or None."""
    suffix = suffix_of(name)
    return pile.kind(name, "rows", lambda head: _layout(head, suffix)) if suffix in SUFFIXES else None


def _layout(head: str, suffix: str) -> str | None:
    try:
        first = next(iter(parse_rows(head, suffix)), None)
    except ValueError:
        return None
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("audio_filepath"), str):
        return "nemo"
    if isinstance(first.get("wav"), str) and first_of(first, TEXTS) is not None:
        return "emilia"
    if isinstance(first.get("file_name"), str):
        return "audiofolder"
    if isinstance(first.get("path"), str) and "sentence" in first:
        return "common_voice"
    named = isinstance(first_of(first, _AUDIO), str)
    if named and first_of(first, _START) is not None and (first_of(first, _END) or first.get("duration")) is not None:
        return "spans"
    return None


def parse_rows(text: str, suffix: str) -> Iterator[Any]:
    """Rows of a table as dictionaries. Raises ValueError, with the line, for a line that is none."""
    if suffix.startswith(".tsv"):
        yield from _tab_separated(text)
        return
    if suffix.startswith(".csv"):
        table = csv.DictReader(io.StringIO(text), strict=True)
        try:
            yield from table
        except csv.Error as error:
            raise ValueError(
                f"after line {table.line_num}: not CSV ({error}); are its quotation marks doubled?"
            ) from error
        return
    if text.lstrip()[:1] == "[":
        yield from json.loads(text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: not valid JSON ({error})") from error


def _tab_separated(text: str) -> Iterator[dict[str | None, Any]]:
    """Rows of one line each, so that a quotation mark which opens a text never swallows the lines behind it.

    Some programs write quotation marks as they are (Common Voice), others double them and quote the field. What is
    behind the last column has the key None, as in `csv.DictReader`.
    """
    lines = (line.rstrip("\r") for line in text.split("\n"))
    rows = ([_unquoted(field) for field in line.split("\t")] for line in lines if line.strip())
    header = next(rows, [])
    for row in rows:
        surplus: dict[str | None, Any] = {None: row[len(header) :]} if len(row) > len(header) else {}
        yield surplus | dict(zip(header, row, strict=False))


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if quoted else field


def _read(pile: Pile, name: str) -> Iterator[Entry | Rejection]:
    try:
        rows = list(parse_rows(pile.text(name), suffix_of(name)))
    except ValueError as error:
        raise ValueError(f"{pile.path(name)}: {error}") from error
    for number, row in enumerate(rows, start=1):
        at = f"{pile.path(name)}, row {number}"
        audio = first_of(row, _AUDIO) if isinstance(row, dict) else None
        if not isinstance(audio, str) or not audio:
            raise ValueError(f"{at}: names no audio file")
        audio, locator = pile.find(audio, name)
        pile.take([audio])
        if name.rpartition("/")[2] == _INVALID and "sentence" in row:
            message = f"{name}: listeners have found that it is not its text"
            yield Rejection(audio=audio, reason=Reason.text_mismatch, message=message)
            continue
        try:
            entry = _entry(row, audio, locator, pile, at)
        except ValueError as error:
            yield Rejection(audio=audio, reason=Reason.bad_annotation, message=str(error))
        else:
            entry.table = name
            yield entry


def _entry(row: dict[str, Any], audio: str, locator: Locator, pile: Pile, at: str) -> Entry:
    """A row as an entry with one turn, or without turns if it has neither text nor times."""
    if any(row.get(None, ())):  # type: ignore[call-overload]
        raise ValueError(f"{at}: has more fields than the first line has names; quote a text that holds the separator")
    text = first_of(row, (pile.text_column, *TEXTS) if pile.text_column else TEXTS)
    who = first_of(row, _SPEAKERS)
    speaker = None if who in (None, "", []) or isinstance(who, (list, dict)) else str(who)
    timed = first_of(row, _START) not in (None, "") or first_of(row, _END) not in (None, "")
    start = seconds(row, _START, at) if first_of(row, _START) not in (None, "") else 0.0
    end = None
    if first_of(row, _END) not in (None, ""):
        end = seconds(row, _END, at)
    elif timed and row.get("duration") not in (None, ""):
        end = round(start + seconds(row, ("duration",), at), 6)
    quality = row.get("dnsmos")
    entry = Entry(
        audio=audio,
        locator=locator,
        id=audio,
        default_group=speaker,
        split=_split(row, at),
        lang=language(row),
        dnsmos=None if quality in (None, "") else finite(quality, "'dnsmos' must be a number", at),
    )
    if text is not None and str(text).strip():
        turn = GivenTurn(0, speaker or "0", start, end, str(text).strip(), speaker_id=None if speaker else 0)
        entry.turns = [turn]
        if timed and speaker is None:
            pile.notes.remark(ONE_SPEAKER, audio)
    elif timed:  # a part of a file of which nothing is known: a recording of its own
        entry.locator = Locator(locator.path, made=Made([locator.path], start=start, end=end))
        entry.id = f"{audio}@{start:g}-{'' if end is None else f'{end:g}'}"
        entry.group = audio
        pile.notes.remark("spans without a text: each is a recording, to be transcribed", entry.id)
    return entry


def _split(row: dict[str, Any], at: str) -> str | None:
    """The split of a row. Raises ValueError for another word, or a number, as of a fold of a cross-validation."""
    try:
        return None if row.get("split") == "" else parse_split(row, at)
    except ValueError as error:
        raise ValueError(f"{error}; rename the column 'split' if it holds something else, such as folds") from error
