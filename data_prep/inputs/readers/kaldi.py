"""Kaldi data directories: wav.scp names recordings, segments their utterances, text and utt2spk texts and speakers.

A pipe in wav.scp is not run: of the usual converters (sph2pipe, flac, cat, sox, ffmpeg) the file itself is read, and
the channel that sph2pipe or sox picks. Another command, and one that changes times (a stretch, another speed), are
refused, with a reason.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from data_prep.inputs.kinds import is_audio
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Rejection

_NEEDED = ("wav.scp", "segments", "text", "utt2spk", "reco2file_and_channel")
_USED = (*_NEEDED, "spk2utt", "spk2gender", "utt2dur", "reco2dur")  # the others say the same again
_CONVERTERS = ("sph2pipe", "flac", "cat", "sox", "ffmpeg")
_PICKS = {"sph2pipe": "-c", "sox": "remix"}  # before the number, from 1, of the only channel that is read
_RETIMES = {  # words of a command whose times are not those of the file
    "sph2pipe": ("-t", "-s"),
    "flac": ("--skip", "--until"),
    "sox": ("speed", "tempo", "stretch", "trim", "pad", "silence", "vad", "reverse", "splice", "repeat", "delay"),
    "ffmpeg": ("-ss", "-sseof", "-t", "-to", "-af", "-filter:a", "-filter_complex", "-map", "-map_channel"),
}


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """Recordings of every folder with a wav.scp. Raises ValueError for a line that has too few fields."""
    for scp in [name for name in pile.left if PurePosixPath(name).name == "wav.scp"]:
        yield from _read(pile, scp)


def _read(pile: Pile, scp: str) -> Iterator[Entry | Rejection]:
    folder = scp[: -len("wav.scp")]
    files = {name: f"{folder}{name}" for name in _USED if f"{folder}{name}" in pile.left}
    pile.take(files.values())
    tables = {name: _table(pile, path) for name, path in files.items() if name in _NEEDED}
    texts, speakers = tables.get("text", {}), tables.get("utt2spk", {})
    channels = {
        name: _channel(line.rpartition(" ")[2]) for name, line in tables.get("reco2file_and_channel", {}).items()
    }
    utterances: dict[str, list[tuple[str, float, float | None]]] = {}
    for utterance, line in tables.get("segments", {}).items():
        parts = line.split()
        try:
            recording, start, end = parts[0], float(parts[1]), float(parts[2])
        except (IndexError, ValueError):
            recording, start, end = "", math.nan, math.nan
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"{pile.path(files['segments'])}: {utterance}: expected recording, start, end")
        utterances.setdefault(recording, []).append((utterance, start, end if end >= 0 else None))
    for recording, source in tables["wav.scp"].items():
        path, channel = _source(source)
        if path is None:
            message = f"wav.scp gets it from a command that is not run: {source}; write its output to a file"
            yield Rejection(audio=f"{folder}{recording}", reason=Reason.audio_missing, message=message)
            continue
        audio, locator = pile.find(path, scp)
        pile.take([audio])
        channel = channels.get(recording, channel)
        said = utterances.pop(recording, [])
        if not said and "segments" not in files:
            said = [(recording, 0.0, None)]
        turns = [
            GivenTurn(n, speakers.get(utterance, recording), start, end, texts.get(utterance), channel)
            for n, (utterance, start, end) in enumerate(sorted(said, key=lambda row: row[1]))
            if utterance in texts or utterance in speakers or end is not None
        ]
        who = {turn.speaker for turn in turns}
        yield Entry(
            audio=audio,
            locator=locator,
            table=scp,
            id=audio if channel is not None else f"{folder}{recording}",
            default_group=who.pop() if len(who) == 1 and "utt2spk" in files else None,
            turns=turns or None,
        )
    for recording, rows in utterances.items():
        pile.notes.without_audio.append(f"{folder}segments: {recording} ({len(rows)} segments)")
        message = f"{folder}segments describes it, but wav.scp does not name it"
        yield Rejection(audio=f"{folder}{recording}", reason=Reason.audio_missing, message=message)
    known = {utterance for rows in utterances.values() for utterance, _, _ in rows} | tables.get("segments", {}).keys()
    lone = texts.keys() - known - tables["wav.scp"].keys()
    pile.notes.without_audio += [f"{folder}text: {utterance}" for utterance in sorted(lone)]


def _table(pile: Pile, name: str) -> dict[str, str]:
    """First field of each line -> the rest of it."""
    rows = (line.strip().partition(" ") for line in pile.text(name).replace("\t", " ").split("\n") if line.strip())
    return {key: rest.strip() for key, _, rest in rows}


def _source(line: str) -> tuple[str | None, int | None]:
    """The audio file of a line of wav.scp and the channel it takes; None for a command that does not give all of it."""
    if not line.endswith("|"):
        return line, None
    try:
        words = shlex.split(line[:-1])
    except ValueError:
        return None, None
    program = PurePosixPath(words[0]).name if words else ""
    files = [word for word in words[1:] if is_audio(word)]
    if program not in _CONVERTERS or len(files) != 1 or "|" in words:
        return None, None
    if any(word.partition("=")[0] in _RETIMES.get(program, ()) for word in words):
        return None, None
    place = words.index(_PICKS[program]) if _PICKS.get(program) in words else None
    if place is None:
        return files[0], None
    picked, following = [*words[place + 1 :], "", ""][:2]
    if not picked.isdigit() or picked == "0" or following[:1].isdigit():  # sox mixes several
        return None, None
    return files[0], int(picked) - 1


def _channel(name: str) -> int | None:
    """Index of a channel, written A or B, or as a number from 1."""
    if name.upper() in ("A", "B"):
        return "AB".index(name.upper())
    return int(name) - 1 if name.isdigit() and int(name) else None
