"""Failures of single utterances, found after the judges have spoken. Nothing is left out because of them.

They are rules on what a listener notices at once; a number without its failures (`wer_sound`) stands beside the number
with them, so that a rare runaway and a generally poor model can be told apart.
"""

from __future__ import annotations

from collections import Counter
from itertools import takewhile

from csm.evaluation.utterances import Flag, Utterance
from csm.evaluation.wer import DiffWord

CLIPPED_SHARE = 1e-4
"""Of the samples beyond full scale: a few milliseconds a minute pass."""
TOO_FAST = 0.6
"""Length of the speech over that of the recording of the same text; twice the speed is 0.5. Texts of fewer than
MIN_WORDS words are left alone: their lengths vary that much."""
MIN_WORDS = 4
TRUNCATED_SHARE, TRUNCATED_WORDS = 0.25, 3
"""The text's last words that must be missing for its end to count as missing: a quarter, and at least three."""
REPEATED_WORDS, REPEATED_TIMES = 3, 3
"""So many words in a row, so many times more often than in the text."""


def find_failures(u: Utterance) -> list[Flag]:
    """The failures of an utterance in the order of `Flag`; those of transcripts need its word errors."""
    words = set() if u.alignment is None else _failures_of_words(u.alignment)
    ended = u.finish_reason in (None, "stop")
    short = ended and u.reference_seconds is not None and u.seconds < TOO_FAST * u.reference_seconds
    found = {
        Flag.empty: not u.seconds,
        Flag.runaway: not ended,
        Flag.clipped: u.clipped > CLIPPED_SHARE,
        # missing words make it short as well
        Flag.too_fast: short and u.seconds > 0 and len(u.text.split()) >= MIN_WORDS and Flag.truncated not in words,
    }
    return [flag for flag in Flag if flag in words or found.get(flag)]


def _failures_of_words(alignment: list[DiffWord]) -> set[Flag]:
    reference = [word.reference for word in alignment if word.reference]
    heard = [word.hypothesis for word in alignment if word.hypothesis]
    missing = sum(1 for _ in takewhile(lambda word: word.kind == "delete", reversed(alignment)))
    found = {
        Flag.repeated: _most_repeated(heard) - _most_repeated(reference) >= REPEATED_TIMES - 1,
        Flag.truncated: bool(heard) and missing >= max(TRUNCATED_WORDS, TRUNCATED_SHARE * len(reference)),
        Flag.long_transcript: len(heard) > 2 * max(1, len(reference)),
    }
    return {flag for flag, there in found.items() if there}


def _most_repeated(words: list[str]) -> int:
    """How often the most frequent run of REPEATED_WORDS words occurs."""
    runs = Counter(tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1))
    return max(runs.values(), default=0)
