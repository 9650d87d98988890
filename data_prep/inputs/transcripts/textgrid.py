"""Praat's TextGrid: an interval tier for each speaker, or the tiers of a forced aligner (`words`, `Ann - words`)."""

from __future__ import annotations

import re

from praatio.utilities import errors, textgrid_io

from data_prep.inputs.transcripts.subtitles import ONE
from data_prep.inputs.transcripts.words import SaidWord, numbered, turns_of_words
from data_prep.records import GivenTurn

_WORDS = re.compile(r"(?:(.+?)\s*[-_/ ]\s*)?words?", re.IGNORECASE)
_SOUNDS = re.compile(r"(?:.+?[-_/ ]\s*)?(?:phones?|phonemes?|syllables?|pos|tones?)", re.IGNORECASE)
_SPEECH = re.compile(r"utterances?|sentences?|text|transcript(?:ion)?|orthography|segments?|turns?", re.IGNORECASE)


def parse_textgrid(text: str) -> list[GivenTurn]:
    """Turns of all interval tiers: the name of a tier is the speaker. Tiers of phones are not text."""
    try:
        tiers = textgrid_io.parseTextgridStr(text, includeEmptyIntervals=False)["tiers"]
    except (errors.PraatioException, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"not a TextGrid ({error!r})") from error
    turns: list[GivenTurn] = []
    words: list[SaidWord] = []
    intervals = [tier for tier in tiers if tier["class"] == "IntervalTier" and not _SOUNDS.fullmatch(tier["name"])]
    phrases = [tier for tier in intervals if not _WORDS.fullmatch(tier["name"])]
    for tier in phrases or intervals:  # words say the same as the phrases, so they count only without them
        entries = [(float(start), float(end), label.strip()) for start, end, label in tier["entries"] if label.strip()]
        aligned = _WORDS.fullmatch(tier["name"])
        if aligned:
            words += [SaidWord(label, start, end, aligned[1] or ONE) for start, end, label in entries]
        else:
            speaker = ONE if _SPEECH.fullmatch(tier["name"]) else tier["name"].strip() or ONE
            turns += [GivenTurn(0, speaker, start, end, label) for start, end, label in entries]
    turns += turns_of_words(words)
    if not turns:
        raise ValueError("holds no intervals with text")
    return numbered(turns)
