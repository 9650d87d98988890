"""Entries of one audio file put together: manifests with a line for each segment become recordings with turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from data_prep.inputs.manifest import Entry
from data_prep.inputs.transcripts.json_text import languages
from data_prep.inputs.transcripts.words import numbered
from data_prep.reasons import Reason
from data_prep.records import Rejection

_T = TypeVar("_T")


def merge_lines(entries: Iterable[Entry | Rejection], where: str) -> Iterator[Entry | Rejection]:
    """Entries of the same bytes become one, with the turns of all of them, each turn once.

    The id of several is the audio's path unless they agree on another. A recording listed again without turns is
    rejected as a duplicate.

    Raises ValueError if the entries of a file disagree on its group or split, or two recordings have the same id.
    """
    of_file: dict[str, list[Entry]] = {}
    for entry in entries:
        if isinstance(entry, Rejection):
            yield entry
        else:
            of_file.setdefault(repr(entry.locator), []).append(entry)
    seen: set[str] = set()
    for same in of_file.values():
        annotated = [entry for entry in same if entry.turns] or same[:1]
        for entry in same:
            if not any(entry is used for used in annotated):
                message = f"listed again, without turns; {annotated[0].id} is the same file"
                yield Rejection(audio=entry.id, reason=Reason.duplicate_file, message=message)
        merged = same[0] if len(same) == 1 else _merged(annotated, same, where)
        if merged.id in seen:
            raise ValueError(f"{where}: two recordings have the id {merged.id!r}; give each its own")
        seen.add(merged.id)
        yield merged if merged.turns is None else replace(merged, turns=_once(merged))


def _merged(entries: list[Entry], same: list[Entry], where: str) -> Entry:
    """The annotated `entries` of a file as one; those of `same`, all that name it, give group and split."""
    first = entries[0]
    turns = first.turns if len(entries) == 1 else numbered([turn for entry in entries for turn in entry.turns or []])
    return replace(
        first,
        id=_common([entry.id for entry in entries]) or first.audio,
        group=_agreed("group", same, where),
        split=_agreed("split", same, where),
        default_group=_common([entry.default_group for entry in entries]),
        lang=languages(entry.lang for entry in entries),
        dnsmos=min((entry.dnsmos for entry in entries if entry.dnsmos is not None), default=None),
        turns=turns,
    )


def _agreed(name: str, entries: list[Entry], where: str) -> str | None:
    """The group or the split of a file: lines that give none (a table of all files beside train.tsv) follow others."""
    values = sorted({value for entry in entries if (value := getattr(entry, name)) is not None})
    if len(values) > 1:
        listed = ", ".join(map(repr, values))
        raise ValueError(
            f"{where}: the lines of {entries[0].audio} give it the {name} {listed}; one file has one {name}"
        )
    return values[0] if values else None


def _once(entry: Entry) -> list:
    """The turns of an entry, those that are listed twice once; numbers stay those of the user's list."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for turn in entry.turns or []:
        key = (turn.speaker, turn.start, turn.end, turn.text, turn.channel)
        if key not in seen:
            seen.add(key)
            kept.append(turn)
    return kept


def _common(values: list[_T]) -> _T | None:
    """The value of all that have one, if it is the same."""
    given = [value for value in values if value is not None]
    return given[0] if given and all(value == given[0] for value in given) else None
