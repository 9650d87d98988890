"""Line formats of speech tools: HTK's .lab and sclite's .trn."""

from __future__ import annotations

import io
import re
from collections.abc import Collection

from data_prep.inputs.transcripts.labels import parse_labels
from data_prep.inputs.transcripts.nist import Rows
from data_prep.inputs.transcripts.subtitles import ONE
from data_prep.inputs.transcripts.words import SaidWord, turns_of_words
from data_prep.records import GivenTurn

_HTK = re.compile(r"(\d+)\s+(\d+)\s+(\S+)(?:\s+.*)?")
_TICKS = 10_000_000  # of HTK, in a second
_PAUSES = {"sil", "sp", "pau", "spn", "<sil>", "!enter", "!exit", "h#", "#", "noise"}
_OF_CONTEXT = re.compile(r"[\^+]|/[A-Z]:")  # phones with their neighbors: "xx^xx-sil+m=i/A:..."
_WORD_LETTERS = 2.5
"""Mean length of a line's label: of phones, 1.5 to 2 letters; of words, 4 and more."""
_TRN = re.compile(r"(.*?)\s*\(([^()\s]+)\)\s*")


def parse_lab(text: str) -> list[GivenTurn]:
    """HTK's lines of start, end (in 100 ns) and a word; or a plain text, as forced aligners take it.

    Labels of phones are no text, so that there are no turns. Raises ValueError as `parse_labels` does.
    """
    lines = [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
    rows = [_HTK.fullmatch(line) for line in lines]
    if not lines or not all(rows):
        return parse_labels(text)
    words = [
        SaidWord(match[3], int(match[1]) / _TICKS, int(match[2]) / _TICKS, ONE)
        for match in rows
        if match and match[3].lower() not in _PAUSES
    ]
    letters = [len(word.text) for word in words if word.text.isascii()]
    phones = any(_OF_CONTEXT.search(word.text) for word in words)
    if phones or (letters and sum(letters) / len(letters) < _WORD_LETTERS):
        return []
    return turns_of_words(words)


def parse_trn(text: str, names: Collection[str] = ()) -> Rows:
    """Lines of a text and, in parentheses, the name of its recording."""
    rows: Rows = {}
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        match = _TRN.fullmatch(line.strip())
        if match is None or not match[1]:
            raise ValueError(f"line {number}: expected a text and, in parentheses, the name of its recording")
        if match[2] in rows:
            raise ValueError(f"line {number}: {match[2]!r} has a text already")
        rows[match[2]] = [("1", GivenTurn(0, ONE, 0.0, None, match[1], speaker_id=0))]
    if not rows:
        raise ValueError("holds no lines")
    return rows
