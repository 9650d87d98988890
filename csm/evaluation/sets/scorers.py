"""The variant of a word that was said, from a phoneme recognizer's output: two scorers, and both are reported.

`greedy_choice`   the phonemes that are most likely frame by frame, and the variant that some stretch of them resembles
                  most; like Sesame's published description, as far as it goes
`forced_choice`   how much less likely the recognizer finds the best alignment with either variant than its own free
                  choice; it needs no transcription of the sentence, and has a margin

The word is looked for near the place where it is in the text, counted in letters: elsewhere the same phonemes may be
those of another word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from csm.evaluation.sets.variants import Realizations
from csm.languages import letters

SLACK = 0.25
"""How far from the word's place in the text its sounds are looked for, as a share of the whole."""

_VOWELS = frozenset("aeiouyɑɐæɒɔəɚɛɜɨɪᵻøœʊʌ")  # noqa: RUF001
_SAME_CLASS, _OTHER_CLASS = 0.6, 1.0  # costs of taking a vowel or consonant for another one, and for the other kind


@dataclass(frozen=True)
class Choice:
    """variant: the one that was said; None: undecided. margin: by how much it was preferred, at least 0."""

    variant: str | None
    margin: float


def place(text: str, word: str) -> tuple[float, float]:
    """The stretch of a sentence, from 0 to 1, in which `word` is looked for.

    Raises:
        ValueError: the word does not occur exactly once.
    """
    found = list(re.finditer(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))
    if len(found) != 1:
        raise ValueError(f"{text!r}: {word!r} occurs {len(found)} times instead of once")
    total, before = letters(text), letters(text[: found[0].start()])
    return max(0.0, before / total - SLACK), min(1.0, (before + letters(word)) / total + SLACK)


# --------------------------------------------------------------------------------------------------------- greedy


def greedy_choice(phones: Sequence[str], realizations: Realizations, where: tuple[float, float]) -> Choice:
    """The variant at the smallest edit distance from any stretch of `phones`; undecided on ties.

    phones: symbols without blanks; where: see `place`
    """
    part = phones[int(where[0] * len(phones)) : int(np.ceil(where[1] * len(phones)))]
    costs = {variant: min(_distance(one, part) for one in ones) for variant, ones in realizations.items()}
    (best, cost), (_, second) = sorted(costs.items(), key=lambda pair: pair[1])[:2]
    return Choice(best, second - cost) if second - cost > 1e-9 else Choice(None, 0.0)


def _distance(word: Sequence[str], phones: Sequence[str]) -> float:
    """Edit distance of `word` from the stretch of `phones` that it resembles most."""
    row = [0.0] * (len(phones) + 1)  # the stretch may begin anywhere
    for symbol in word:
        above, row = row, [row[0] + 1]
        for j, heard in enumerate(phones):
            row.append(min(above[j] + _cost(symbol, heard), above[j + 1] + 1, row[j] + 1))
    return min(row)  # and end anywhere


def _cost(a: str, b: str) -> float:
    if a == b:
        return 0.0
    return _SAME_CLASS if (a[0] in _VOWELS) == (b[0] in _VOWELS) else _OTHER_CLASS


# --------------------------------------------------------------------------------------------------------- forced


def forced_choice(
    log_probs: np.ndarray,
    vocabulary: Sequence[str],
    blank: int,
    realizations: Realizations,
    where: tuple[float, float],
    offset: float = 0.0,
) -> Choice:
    """The variant with the likelier alignment; its margin is in nats.

    log_probs: float [T, V] of the recognizer; vocabulary, blank: of it; where: see `place`
    offset: subtracted from the first variant's advantage, see `calibrate`
    """
    first, second = realizations
    return choose(forced_advantage(log_probs, vocabulary, blank, realizations, where), first, second, offset)


def choose(advantage: float, first: str, second: str, offset: float = 0.0) -> Choice:
    """The variant by the first one's advantage over the second; undecided if neither had the time."""
    advantage -= offset
    if not np.isfinite(advantage) or advantage == 0:
        return Choice(None, 0.0)
    return Choice(first if advantage > 0 else second, abs(float(advantage)))


def forced_advantage(
    log_probs: np.ndarray, vocabulary: Sequence[str], blank: int, realizations: Realizations, where: tuple[float, float]
) -> float:
    """Log-probability of the first variant's best alignment minus that of the second's; NaN if neither has the time."""
    frames = log_probs[int(where[0] * len(log_probs)) : int(np.ceil(where[1] * len(log_probs)))]
    if not len(frames):
        return float("nan")
    numbers = {symbol: number for number, symbol in enumerate(vocabulary)}
    against_free = frames.astype(np.float64) - frames.max(axis=1, keepdims=True)
    first, second = (
        max(_aligned(against_free, [numbers[symbol] for symbol in one], blank) for one in ones)
        for ones in realizations.values()
    )
    return first - second  # NaN if both are minus infinity


def _aligned(scores: np.ndarray, word: Sequence[int], blank: int) -> float:
    """The best CTC alignment of `word` with a stretch of frames; frames outside of it cost nothing.

    scores: [T, V], log-probabilities minus the largest of their frame
    """
    states = [word[0]]  # the symbols with a blank, which may be skipped, between them
    for symbol in word[1:]:
        states += [blank, symbol]
    skips = [i % 2 == 0 and i > 0 and states[i] != states[i - 2] for i in range(len(states))]
    at: np.ndarray = np.full(len(states), -np.inf)
    best = -np.inf
    for frame in scores:
        before = at
        at = np.array([max(here, 0.0 if i == 0 else before[i - 1]) for i, here in enumerate(before)])
        skipped = [before[i - 2] if skip else -np.inf for i, skip in enumerate(skips)]
        at = np.maximum(at, skipped) + frame[states]
        best = max(best, float(at[-1]))
    return best


def calibrate(advantages: Sequence[float], first: Sequence[bool]) -> float:
    """The offset of `forced_choice` that makes the fewest mistakes on speech whose variants are known.

    advantages: of `forced_advantage`; first: whether the first variant was said. The offset lies halfway between two of
    them; of several, it is the one nearest to 0.
    """
    known = sorted((a, f) for a, f in zip(advantages, first, strict=True) if np.isfinite(a))
    cuts = [(lower + upper) / 2 for (lower, _), (upper, _) in pairwise(known)] or [0.0]
    return min(cuts, key=lambda cut: (sum((a > cut) != f for a, f in known), abs(cut)))
