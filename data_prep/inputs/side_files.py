"""Side files: annotation of `name.wav` in a file next to it, of the same name with another suffix.

    name.json      turns, or one of the forms of transcripts/json_text.py
    name.stm       speakers, times and texts (NIST sclite)
    name.TextGrid  speakers, times and texts (Praat)
    name.vtt, .srt times and texts, and speakers if they are written in front
    name.ctm       words with times (NIST sclite)
    name.eaf       speakers, times and texts (ELAN)
    name.cha       speakers, times and texts (CHAT: CHILDES, CallHome)
    name.rttm      speakers and times (NIST RT-09)
    name.trn       the text of the whole recording, and in parentheses its name (NIST sclite)
    name.txt       the text of the whole recording, or lines that begin with times
    name.lab       words with times (HTK), or the text of the whole recording

If there are several, the first in this order counts that annotates anything.
"""

from __future__ import annotations

from collections.abc import Collection

from data_prep.inputs.transcripts.annotation import Annotation
from data_prep.inputs.transcripts.chat import parse_chat
from data_prep.inputs.transcripts.elan import parse_elan
from data_prep.inputs.transcripts.json_text import ONE_SPEAKER, parse_json
from data_prep.inputs.transcripts.labels import of_sides, parse_labels
from data_prep.inputs.transcripts.lines import parse_lab, parse_trn
from data_prep.inputs.transcripts.nist import of_recording, parse_ctm, parse_rttm, parse_stm, turns_of
from data_prep.inputs.transcripts.subtitles import ONE, named_line, parse_subtitles
from data_prep.records import GivenTurn

SIDE_SUFFIXES = (".json", ".stm", ".textgrid", ".vtt", ".srt", ".eaf", ".cha", ".ctm", ".rttm", ".trn", ".txt", ".lab")
OF_MANY = (".stm", ".ctm", ".rttm", ".trn", ".cha")
"""Formats that name the recording, so that the file may have another name, and all but CHAT may describe many."""

_OTHERS = "lines on other recordings in an annotation of this name"

_COLON = "texts that begin with a word and a colon, which is trained as spoken: a name does not belong there"

_NIST = {".stm": parse_stm, ".ctm": parse_ctm, ".rttm": parse_rttm, ".trn": parse_trn}


def parse_side_file(suffix: str, content: bytes, stem: str) -> Annotation:
    """Reads a side file of the recording named `stem`. Raises ValueError saying what is wrong with it."""
    text = decode_text(content)
    if suffix == ".json":
        return parse_json(text)
    if suffix in _NIST:
        rows = _NIST[suffix](text, (stem,))
        return Annotation(of_recording(rows, stem), unused=_OTHERS if len(rows) > 1 else None)
    if suffix == ".textgrid":
        from data_prep.inputs.transcripts.textgrid import parse_textgrid  # slow to import

        return _timed(parse_textgrid(text))
    if suffix == ".cha":
        return next(iter(parse_chat(text, stem).values()))
    if suffix == ".eaf":
        return Annotation(parse_elan(text))
    if suffix == ".lab":
        turns = parse_lab(text)
        return _timed(turns) if turns else Annotation(None)
    if suffix in (".vtt", ".srt"):
        return _timed(parse_subtitles(text, suffix[1:]))
    turns = parse_labels(text)
    found = _timed(turns)
    found.sides = of_sides(turns)
    if turns[0].speaker == ONE and turns[0].end is None and named_line(turns[0].text or ""):
        found.remark = found.remark or _COLON
    return found


def parse_many(suffix: str, content: bytes, names: Collection[str]) -> dict[str, Annotation]:
    """Recordings that a file names -> their annotations; `suffix` is one of OF_MANY, `names` those of the recordings.

    Raises ValueError.
    """
    text = decode_text(content)
    if suffix == ".cha":
        return parse_chat(text)
    return {file: Annotation(turns_of(rows)) for file, rows in _NIST[suffix](text, names).items()}


def decode_text(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, or UTF-16 with one, as Praat writes. Raises ValueError otherwise."""
    try:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error}); save it as UTF-8") from error


def _timed(turns: list[GivenTurn]) -> Annotation:
    """With times but without speakers, all turns are one speaker's, which is worth a remark."""
    timed = any(turn.end is not None or turn.start for turn in turns)
    unnamed = timed and all(turn.speaker == ONE for turn in turns)
    return Annotation(turns, remark=ONE_SPEAKER if unnamed else None)
