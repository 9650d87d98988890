"""SRT and WebVTT: a turn for each cue. Speakers come from `<v Ann>`, or from "Ann:" at the start of most cues.

Automatic captions scroll: each cue shows the last line once more, above the new one. Each line counts once.
"""

from __future__ import annotations

import re

import pysubs2

from csm.languages import MARKS
from data_prep.inputs.transcripts.words import numbered
from data_prep.records import GivenTurn

ONE = "0"
"""The speaker of a transcript that names none."""

_VOICE = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_PREFIX = re.compile(rf"\s*[-\[(]?\s*([^\W\d][\w{MARKS} .'-]{{0,30}}|SPEAKER_\d+)[\])]?\s*:\s+(?=\S)")
_MOMENT = re.compile(r"<(?:\d+:)?\d{2}:\d{2}\.\d{3}>")  # when the word behind it appears
_DASH = re.compile(r"^\s*[-\u2013]\s+(?=\S)")


def parse_subtitles(text: str, kind: str) -> list[GivenTurn]:
    """The cues of an SRT ("srt") or WebVTT ("vtt") file as turns, by start."""
    try:
        cues = pysubs2.SSAFile.from_string(_VOICE.sub(r"\1: ", _MOMENT.sub("", text)), format_=kind)
    except (pysubs2.Pysubs2Error, ValueError) as error:
        raise ValueError(f"not {kind.upper()} subtitles ({error})") from error
    rows = [(cue.start / 1000, cue.end / 1000, cue.plaintext.strip()) for cue in cues if cue.plaintext.strip()]
    if not rows:
        raise ValueError("holds no cues")
    if unread := next((said for _, _, said in rows if "-->" in said), None):
        raise ValueError(
            f"has a time that is not read, at {unread[-60:]!r}; write h:mm:ss{',' if kind == 'srt' else '.'}mmm"
        )
    rows = _unscrolled(rows)
    return numbered(
        [
            GivenTurn(0, who, start, end, said)
            for (start, end, _), (who, said) in zip(rows, speakers([r[2] for r in rows]), strict=True)
        ]
    )


def _unscrolled(rows: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Start, end and text of cues without the lines that repeat the end of the cue before, if most cues do so."""
    found, repeating, shown = [], 0, list[str]()
    for start, end, said in rows:
        lines = [line.strip() for line in said.split("\n") if line.strip()]
        again = next((n for n in range(min(len(shown), len(lines)), 0, -1) if shown[-n:] == lines[:n]), 0)
        repeating += again > 0
        if lines[again:]:
            found.append((start, end, "\n".join(lines[again:])))
        shown = lines
    return found if 2 * repeating > len(rows) else rows


def speakers(texts: list[str]) -> list[tuple[str, str]]:
    """Speaker and text of each line. Names in front count only if at least half of the lines have one."""
    named = [_PREFIX.match(text) for text in texts]
    if 2 * sum(match is not None for match in named) < len(texts):
        return [(ONE, _plain(text)) for text in texts]
    found, last = [], ONE
    for text, match in zip(texts, named, strict=True):
        last = match[1].strip() if match else last  # a cue without a name goes on with the speaker before
        found.append((last, _plain(text[match.end() :] if match else text)))
    return found


def named_line(line: str) -> str | None:
    """The name in front of a line; None if there is none."""
    match = _PREFIX.match(line)
    return match[1].strip() if match else None


def _plain(text: str) -> str:
    return " ".join(_DASH.sub("", line) for line in text.split("\n")).strip()
