"""Word error rate: errors of one utterance, two ways to average them, and the alignment shown in reports.

Words are what the normalizer separates by spaces: in languages that are written without them, characters, and the rate
is a CER (csm/evaluation/text_norm.py).

The two averages answer different questions and differ in practice, so a report prints both with their names:

    corpus WER = sum of errors / sum of reference words        (long utterances weigh more)
    mean WER   = mean over utterances of errors / reference words   (every utterance weighs the same)

Both can exceed 1: insertions are errors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jiwer


@dataclass(frozen=True)
class WordErrors:
    """Word counts of one utterance after minimum-edit alignment."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference_words(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """errors / reference words; None for an empty reference, whose rate is undefined."""
        return self.errors / self.reference_words if self.reference_words else None


Kind = Literal["equal", "substitute", "delete", "insert"]
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}  # the names that jiwer uses


@dataclass(frozen=True)
class DiffWord:
    """One step of the alignment; the side that a step lacks is empty."""

    kind: Kind
    reference: str
    hypothesis: str


def align_words(reference: str, hypothesis: str) -> list[DiffWord]:
    """Word-by-word alignment of two texts as `TextNormalizer` returns them."""
    output = jiwer.process_words(reference, hypothesis)
    ref, hyp = output.references[0], output.hypotheses[0]
    words = []
    for chunk in output.alignments[0]:
        left = ref[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(left), len(right))):  # a chunk groups neighbors of one kind
            words.append(DiffWord(_KINDS[chunk.type], left[i] if left else "", right[i] if right else ""))
    return words


def count_errors(words: Sequence[DiffWord]) -> WordErrors:
    """The counts of an alignment made by `align_words`."""
    kinds = [word.kind for word in words]
    return WordErrors(kinds.count("equal"), kinds.count("substitute"), kinds.count("delete"), kinds.count("insert"))


def corpus_wer(utterances: Sequence[WordErrors]) -> float | None:
    """Sum of errors over sum of reference words; None if there is no reference word at all.

    Words recognized where the reference is empty count as insertions.
    """
    reference_words = sum(u.reference_words for u in utterances)
    return sum(u.errors for u in utterances) / reference_words if reference_words else None


def mean_wer(utterances: Sequence[WordErrors]) -> float | None:
    """Unweighted mean of the utterances' rates. Empty references have no rate and are skipped: report their number."""
    rates = [u.rate for u in utterances if u.rate is not None]
    return sum(rates) / len(rates) if rates else None
