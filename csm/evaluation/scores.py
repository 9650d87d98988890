"""Judged utterances, and the scores of a system over many of them.

Every evaluation compares three systems: the recordings themselves (the judges' scores of real speech), the recordings
through the codec (the best the model could do), and the model. A number that cannot be computed is kept as the reason
why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from csm.evaluation.statistics import Estimate, estimate_ratio
from csm.evaluation.wer import DiffWord, WordErrors


class System(Enum):
    ground_truth = "Ground truth"
    codec_resynthesis = "Codec resynthesis"
    model = "Model"


class Flag(Enum):
    """Something went wrong with an utterance. It is still scored: an empty output is a transcript without words."""

    empty = "empty output"
    no_end = "no end of speech before the limit"
    long_transcript = "transcript over twice the reference"


METRICS = ("wer_corpus", "wer_mean", "cosine_recording", "cosine_earlier")


@dataclass
class Utterance:
    """Audio of one prompt by one system, with the judges' results. Cosines are None where undefined."""

    prompt: str
    system: System
    seed: int | None  # of the sampling; None for recordings
    cluster: str
    speaker: int
    text: str
    audio: Tensor = field(repr=False)  # float32 [num_samples]
    sample_rate: int = 24_000
    context_turns: int | None = None  # turns the model was given
    compute_seconds: float | None = None
    flags: list[Flag] = field(default_factory=list)
    reference_words: str | None = None  # normalized
    hypothesis: str | None = None  # as transcribed
    alignment: list[DiffWord] | None = None
    errors: WordErrors | None = None
    cosine_recording: float | None = None  # with the recording of the same turn
    cosine_earlier: float | None = None  # with the same speaker's earlier turns
    audio_file: str | None = None  # relative to the report

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate

    def to_row(self) -> dict[str, Any]:
        """Plain values: a line of utterances.jsonl."""
        return {
            "prompt": self.prompt,
            "system": self.system.name,
            "seed": self.seed,
            "cluster": self.cluster,
            "speaker": self.speaker,
            "text": self.text,
            "reference_normalized": self.reference_words,
            "hypothesis": self.hypothesis,
            "word_errors": asdict(self.errors) if self.errors else None,
            "wer": self.errors.rate if self.errors else None,
            "cosine_recording": self.cosine_recording,
            "cosine_earlier": self.cosine_earlier,
            "seconds": round(self.seconds, 3),
            "compute_seconds": self.compute_seconds,
            "context_turns": self.context_turns,
            "flags": [flag.name for flag in self.flags],
            "audio": self.audio_file,
        }


@dataclass(frozen=True)
class NotRun:
    """A number that does not exist, and why."""

    reason: str

    def __str__(self) -> str:
        return f"not run: {self.reason}"


Score = Estimate | NotRun


@dataclass
class SystemScores:
    """The report's headline numbers of one system."""

    system: System
    expected: int  # utterances there should be
    scored: int
    flags: dict[Flag, int]
    empty_references: int  # texts without a word after normalization: no mean-WER term
    metrics: dict[str, Score]  # by name in METRICS


@dataclass(frozen=True)
class Unavailable:
    """Reasons why judges could not run; None: they did."""

    recognizer: str | None = None
    embedder: str | None = None


def score_system(
    system: System,
    utterances: list[Utterance],
    expected: int,
    unavailable: Unavailable,
    bootstrap_samples: int,
    missing: str | None = None,
) -> SystemScores:
    """Pools one system's utterances (all seeds; a prompt's seeds share its cluster).

    `missing` is why there are fewer utterances than `expected`.
    """
    judged = [(u.cluster, u.errors) for u in utterances if u.errors is not None]
    rates = [(cluster, errors.rate) for cluster, errors in judged if errors.rate is not None]

    def mean(values: list[tuple[str, float]]) -> Estimate:
        clusters = [cluster for cluster, _ in values]
        return estimate_ratio([value for _, value in values], [1.0] * len(values), clusters, samples=bootstrap_samples)

    def word_errors(per_utterance: bool) -> Score:
        if not utterances:
            return NotRun(missing or "no utterances")
        if unavailable.recognizer:
            return NotRun(unavailable.recognizer)
        if not rates:
            return NotRun("no reference text holds a word after normalization")
        if per_utterance:
            return mean(rates)
        return estimate_ratio(
            [errors.errors for _, errors in judged],
            [errors.reference_words for _, errors in judged],
            [cluster for cluster, _ in judged],
            samples=bootstrap_samples,
        )

    def cosine(name: str, itself: bool, nothing: str) -> Score:
        if not utterances:
            return NotRun(missing or "no utterances")
        if itself:
            return NotRun("the recording would be compared with itself")
        if unavailable.embedder:
            return NotRun(unavailable.embedder)
        cosines = [(u.cluster, getattr(u, name)) for u in utterances if getattr(u, name) is not None]
        return mean(cosines) if cosines else NotRun(nothing)

    counts = Counter(flag for u in utterances for flag in u.flags)
    return SystemScores(
        system=system,
        expected=expected,
        scored=len(utterances),
        flags={flag: counts[flag] for flag in Flag},
        empty_references=len(judged) - len(rates),
        metrics={
            "wer_corpus": word_errors(per_utterance=False),
            "wer_mean": word_errors(per_utterance=True),
            "cosine_recording": cosine(
                "cosine_recording", system is System.ground_truth, "no original recordings to compare with"
            ),
            "cosine_earlier": cosine("cosine_earlier", False, "no earlier turn of the same speaker to compare with"),
        },
    )


def score_to_dict(score: Score) -> dict[str, Any]:
    """Plain values for results.json."""
    return {"not_run": score.reason} if isinstance(score, NotRun) else asdict(score)
