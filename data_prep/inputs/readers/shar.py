"""Lhotse Shar: cuts.000000.jsonl.gz with the audio of exactly these cuts in recording.000000.tar next to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.inputs.folders import tar_members
from data_prep.inputs.kinds import is_audio
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.inputs.readers.lhotse import described, group_of, manifest
from data_prep.reasons import Reason
from data_prep.records import Rejection

_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(?:\.gz)?")
_FIELD = re.compile(r"(\w+)\.(\d+)\.(?:tar|jsonl|jsonl\.gz)")


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each cut; other fields than `recording` (features, targets) are noted and not used."""
    all_cuts = [name for name in pile.left if _CUTS.fullmatch(PurePosixPath(name).name)]
    in_folder = pile.by_folder() if all_cuts else {}
    for cuts in all_cuts:
        folder, _, file = cuts.rpartition("/")
        number = _CUTS.fullmatch(file)[1]  # type: ignore[index]
        prefix = f"{folder}/" if folder else ""
        tar = f"{prefix}recording.{number}.tar"
        if tar not in pile.left:
            continue  # plain cuts, that lhotse.py reads
        fields = [name for name in in_folder[folder] if _of_shard(name, number)]
        pile.take([cuts, tar, *fields])
        pile.notes.put_aside(
            (name for name in fields if name not in (cuts, tar)), "fields of Shar other than recording"
        )
        members, damage = tar_members(pile.path(tar), tar)
        if damage:
            yield Rejection(audio=tar, reason=Reason.audio_corrupt, message=f"{pile.path(tar)}: {damage}")
        audio = {
            str(PurePosixPath(name).with_suffix("")).removeprefix(f"{tar}/"): name for name in members if is_audio(name)
        }
        for cut in manifest(pile, cuts, "cut"):
            name = audio.pop(str(cut["id"]), None)
            if name is None:
                message = f"{cuts} describes it, but {tar} does not hold it"
                yield Rejection(audio=f"{prefix}{cut['id']}", reason=Reason.audio_missing, message=message)
                continue
            recording = cut.get("recording") or {}
            fields_of = described(cut.get("supervisions") or [], 0.0, len(recording.get("channel_ids") or []) > 1)
            if recording:
                fields_of["default_group"] = str(recording["id"])  # cuts of a recording share voices
            cut_id = f"{prefix}{cut['id']}"
            yield Entry(audio=name, locator=members[name], table=cuts, id=cut_id, group=group_of(cut), **fields_of)
        pile.notes.put_aside(audio.values(), "audio in Shar that no cut describes")


def _of_shard(name: str, number: str) -> bool:
    match = _FIELD.fullmatch(PurePosixPath(name).name)
    return match is not None and match[2] == number
