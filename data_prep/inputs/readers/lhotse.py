"""Lhotse manifests, as JSON lines (also .gz): recordings with supervisions, or cuts, which hold both.

The package `lhotse` is not needed. A cut is a stretch of a recording: its supervisions are turns of that recording,
and without any the stretch is a turn without a text.
Sources that are commands, and cuts mixed from several, are refused with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data_prep.inputs.kinds import suffix_of
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.inputs.transcripts.json_text import language_of_all, seconds
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Rejection

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """Entries of all cuts; without cuts, of all recordings with their supervisions."""
    kinds = {name: kind for name in pile.left if (kind := kind_of(pile, name))}
    pile.take(kinds)
    cuts = [name for name, kind in kinds.items() if kind == "cut"]
    for name in cuts:
        for cut in manifest(pile, name, "cut"):
            yield _of_cut(pile, cut, name)
    recordings = [name for name, kind in kinds.items() if kind == "recording"]
    supervisions = [name for name, kind in kinds.items() if kind == "supervision"]
    if cuts:
        pile.notes.put_aside(recordings + supervisions, "Lhotse manifests (the cuts hold them too)")
        return
    of_recording: dict[str, list[dict[str, Any]]] = {}
    for name in supervisions:
        for row in manifest(pile, name, "supervision"):
            of_recording.setdefault(str(row["recording_id"]), []).append(row)
    for name in recordings:
        for row in manifest(pile, name, "recording"):
            yield _of_recording(pile, row, of_recording.pop(str(row["id"]), []), name, 0.0)
    for recording, rows in of_recording.items():
        pile.notes.without_audio.append(f"{supervisions[0]}: {recording} ({len(rows)} supervisions)")
        message = "supervisions describe it, but no recordings manifest names it"
        yield Rejection(audio=recording, reason=Reason.audio_missing, message=message)


def kind_of(pile: Pile, name: str) -> str | None:
    """Whether a file is a manifest of "recording"s, "supervision"s or "cut"s, by its first line; None: of neither."""
    return pile.kind(name, "lhotse", _kind) if suffix_of(name) in SUFFIXES else None


def _kind(head: str) -> str | None:
    try:
        row = json.loads(head.strip().partition("\n")[0])
    except ValueError:
        return None
    if not isinstance(row, dict) or "id" not in row:
        return None
    if str(row.get("type", "")).endswith("Cut") or ("recording" in row and "supervisions" in row):
        return "cut"
    if isinstance(row.get("sources"), list) and "sampling_rate" in row:
        return "recording"
    return "supervision" if "recording_id" in row and "start" in row and "duration" in row else None


def is_manifest(pile: Pile, name: str) -> bool:
    return kind_of(pile, name) is not None


def manifest(pile: Pile, name: str, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of a manifest of "recording"s, "supervision"s or "cut"s. Raises ValueError for one that is none."""
    for number, line in enumerate(pile.text(name).split("\n"), start=1):
        if not line.strip():
            continue
        at = f"{pile.path(name)}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{at}: not valid JSON ({error})") from error
        _check_row(row, "recording_id" if kind == "supervision" else "id", at)
        if kind == "cut":
            _check_cut(row, at)
        elif kind == "recording":
            _check_recording(row, at)
        for supervision in [row] if kind == "supervision" else _list_in(row, "supervisions", at):
            _check_row(supervision, "start", f"{at}, supervision")
            for key in ("start", "duration"):
                seconds(supervision, (key,), f"{at}, supervision")
            for key in ("text", "speaker"):
                if isinstance(supervision.get(key), (dict, list)):
                    raise ValueError(f"{at}, supervision: {key!r} must be a string, got {json.dumps(supervision[key])}")
        yield row


def _check_row(row: Any, key: str, at: str) -> None:
    if not isinstance(row, dict) or key not in row:
        raise ValueError(f"{at}: expected a JSON object with {key!r}")


def _check_cut(cut: dict[str, Any], at: str) -> None:
    if cut.get("start") is not None:
        seconds(cut, ("start",), at)
    recording = cut.get("recording")
    if recording is not None:
        _check_row(recording, "id", f"{at}, recording")
        _check_recording(recording, f"{at}, recording")


def _check_recording(recording: dict[str, Any], at: str) -> None:
    _list_in(recording, "channel_ids", at)
    for source in _list_in(recording, "sources", at):
        _check_row(source, "type", f"{at}, source")
        _list_in(source, "channels", f"{at}, source")


def _list_in(row: dict[str, Any], key: str, at: str) -> list[Any]:
    """The list under a key; empty if there is none. Raises ValueError, beginning with `at`, for anything else."""
    value = row.get(key)
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{at}: {key!r} must be a list, got {json.dumps(value)}")
    return value or []


def _of_cut(pile: Pile, cut: dict[str, Any], name: str) -> Entry | Rejection:
    if cut.get("recording") is None:
        message = f"{name}: a {cut.get('type', 'cut')} of several recordings, or without audio; save it as a file"
        return Rejection(audio=str(cut["id"]), reason=Reason.audio_missing, message=message)
    start = 0.0 if cut.get("start") is None else seconds(cut, ("start",), name)
    supervisions = cut.get("supervisions") or []
    if not supervisions and cut.get("duration") is not None:
        length = seconds(cut, ("duration",), name)
        if (start, length) != (0.0, cut["recording"].get("duration")):
            supervisions = [{"start": 0.0, "duration": length}]  # one turn, to be recognized; the rest is not meant
    entry = _of_recording(pile, cut["recording"], supervisions, name, start)
    if isinstance(entry, Entry):
        entry.group = group_of(cut)
    return entry


def group_of(cut: dict[str, Any]) -> str | None:
    """The group of a cut as our own export writes it, and other programs keep it."""
    custom = cut.get("custom")
    group = custom.get("group") if isinstance(custom, dict) else None
    return group if isinstance(group, str) else None


def _of_recording(
    pile: Pile, recording: dict[str, Any], supervisions: list[dict[str, Any]], name: str, offset: float
) -> Entry | Rejection:
    sources = recording.get("sources") or []
    if len(sources) != 1 or sources[0].get("type") not in ("file", "url") or "source" not in sources[0]:
        kinds = ", ".join(str(source.get("type")) for source in sources) or "no"
        message = f"{name}: has {kinds} sources, of which only a single file or URL is read"
        return Rejection(audio=str(recording.get("id")), reason=Reason.audio_missing, message=message)
    audio, locator = pile.find(str(sources[0]["source"]), name)
    pile.take([audio])
    several = len(recording.get("channel_ids") or sources[0].get("channels") or []) > 1
    return Entry(audio=audio, locator=locator, id=audio, table=name, **described(supervisions, offset, several))


def described(supervisions: list[dict[str, Any]], offset: float, several: bool) -> dict[str, Any]:
    """Fields of an `Entry` that supervisions give; `offset` is where their time begins, `several` channels or one."""
    turns = []
    for number, row in enumerate(sorted(supervisions, key=lambda row: float(row["start"]))):
        start = round(offset + float(row["start"]), 6)
        channel = row.get("channel")
        turns.append(
            GivenTurn(
                number,
                str(row.get("speaker") or "0"),
                start,
                round(start + float(row["duration"]), 6),
                None if row.get("text") is None else str(row["text"]).strip(),
                channel if several and isinstance(channel, int) else None,
            )
        )
    names = {turn.speaker for turn in turns}
    return {
        "turns": turns or None,
        "lang": language_of_all(supervisions),
        "default_group": names.pop() if len(names) == 1 and supervisions[0].get("speaker") else None,
    }
