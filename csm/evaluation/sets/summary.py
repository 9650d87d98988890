"""Results of both tests: accuracy over words, what chance gives, and agreement beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from csm.evaluation.statistics import Estimate, estimate_ratio


@dataclass(frozen=True)
class Answer:
    """A scored item. expected, found: variants, or senses; found None: undecided, or nothing was said."""

    word: str
    expected: str
    found: str | None


@dataclass(frozen=True)
class Accuracy:
    """Share of items with the expected variant; undecided ones are wrong.

    over_words: with an interval that resamples words, for other words; there are few of them, so it is wide
    low, high:  Wilson's interval, for other sentences with these words
    by_word:    word -> (right, items)
    """

    over_words: Estimate
    low: float
    high: float
    undecided: int
    by_word: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Consistency:
    """accuracy: share of items in the variant of their context.

    majority:  share of items in the variant that their word has most often whatever the context; a system that ignores
               context has 1 here and 0.5 in accuracy
    kappa:     Cohen's kappa of context and answer, with the chance agreement of each word; 0: context has no influence
    """

    accuracy: Accuracy
    majority: float
    kappa: float


def accuracy(answers: Sequence[Answer], bootstrap_samples: int = 2000) -> Accuracy:
    """Raises ValueError for no answers."""
    if not answers:
        raise ValueError("no answers to summarize")
    right = [answer.found == answer.expected for answer in answers]
    words = [answer.word for answer in answers]
    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    items, hits = Counter(words), Counter(word for word, hit in zip(words, right, strict=True) if hit)
    return Accuracy(
        over_words=estimate_ratio([float(hit) for hit in right], [1.0] * len(right), words, samples=bootstrap_samples),
        low=float(interval.low),
        high=float(interval.high),
        undecided=sum(answer.found is None for answer in answers),
        by_word={word: (hits[word], items[word]) for word in sorted(items)},
    )


def consistency(answers: Sequence[Answer], bootstrap_samples: int = 2000) -> Consistency:
    """Raises ValueError for no answers."""
    found = accuracy(answers, bootstrap_samples)
    majority = chance = 0.0
    for word in found.by_word:
        expected = Counter(answer.expected for answer in answers if answer.word == word)
        said = Counter(answer.found for answer in answers if answer.word == word)
        items = expected.total()
        majority += max((count for variant, count in said.items() if variant is not None), default=0)
        chance += sum(count * said[variant] for variant, count in expected.items()) / items
    chance /= len(answers)
    observed = found.over_words.value
    kappa = (observed - chance) / (1 - chance) if chance < 1 else 1.0
    return Consistency(found, majority / len(answers), kappa)
