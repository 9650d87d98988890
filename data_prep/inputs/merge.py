"""Entries of one audio file put together: manifests with a line for each segment become recordings with turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from data_prep.inputs.manifest import Entry
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
        merged = annotated[0] if len(annotated) == 1 else _merged(annotated, where)
        if merged.id in seen:
            raise ValueError(f"{where}: two recordings have the id {merged.id!r}; give each its own")
        seen.add(merged.id)
        yield merged if merged.turns is None else replace(merged, turns=_once(merged))


def _merged(entries: list[Entry], where: str) -> Entry:
    first = entries[0]
    for name in ("group", "split"):
        values = {getattr(entry, name) for entry in entries}
        if len(values) > 1:
            listed = ", ".join(sorted(map(repr, values)))
            raise ValueError(
                f"{where}: the lines of {first.audio} give it the {name} {listed}; one file has one {name}"
            )
    return replace(
        first,
        id=_common([entry.id for entry in entries]) or first.audio,
        default_group=_common([entry.default_group for entry in entries]),
        lang=_common([entry.lang for entry in entries]),
        dnsmos=min((entry.dnsmos for entry in entries if entry.dnsmos is not None), default=None),
        turns=numbered([turn for entry in entries for turn in entry.turns or []]),
    )


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
    return values[0] if all(value == values[0] for value in values) else None
