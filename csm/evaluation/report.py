"""The contents of a report, and results.json, the contract for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from csm.evaluation.contrasts import Contrast
from csm.evaluation.metrics import metric
from csm.evaluation.prompts import EvalPrompt
from csm.evaluation.scores import SystemScores, score_to_dict
from csm.evaluation.text_norm import Rate
from csm.evaluation.utterances import Utterance

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class PublishedView:
    """A published row, and whether this report's numbers may be held against it: "yes", or "no" and why."""

    system: str
    values: dict[str, str]
    source: str
    comparable: str


@dataclass
class Report:
    """The contents of a report. `protocol`, `provenance`, `overlap` and `timings` are plain values.

    protocol: everything but the model that decides the numbers. Only `timings` differ between equal runs, and what
    utterances say of their compute time.
    """

    title: str
    subtitle: str
    suite: str
    scoring: str
    prompts: list[EvalPrompt]
    utterances: list[Utterance]
    scores: list[SystemScores]
    scores_by_seed: dict[int, list[SystemScores]]  # of the model; empty with one seed
    embedder: str
    recognizer: str
    rate: Rate  # what its error rates are called
    notes: list[str]
    published: list[PublishedView]
    protocol: dict[str, Any]
    protocol_hash: str
    provenance: dict[str, dict[str, Any]]
    contrasts: list[Contrast] = field(default_factory=list)
    teacher_forced: dict[str, Any] | None = None  # see csm/evaluation/teacher_forced.py
    pronunciation: dict[str, Any] | None = None  # see csm/evaluation/pronunciation.py
    overlap: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in order; none where nothing is spoken."""
        return list(self.scores[0].metrics) if self.scores else []


def results(report: Report) -> dict[str, Any]:
    """The content of results.json."""

    def system(scores: SystemScores) -> dict[str, Any]:
        return {
            "expected": scores.expected,
            "scored": scores.scored,
            "failures": {flag.name: count for flag, count in scores.flags.items()},
            "empty_references": scores.empty_references,
            "metrics": {name: score_to_dict(score) for name, score in scores.metrics.items()},
        }

    def group(rows: list[SystemScores]) -> dict[str, Any]:
        return {scores.name: {"title": scores.title} | system(scores) for scores in rows}

    return {
        "schema": SCHEMA_VERSION,
        "title": report.title,
        "suite": report.suite,
        "scoring": report.scoring,
        "recognizer": report.recognizer,
        "error_rate": report.rate,
        "speaker_embedder": report.embedder,
        "metrics": {
            name: {
                "title": found.title,
                "short": found.short,
                "detail": found.detail,
                "percent": found.percent,
                "better": found.better,
                "pool": found.pool,
            }
            for name in report.metrics
            for found in [metric(name, report.rate)]
        },
        "systems": group(report.scores),
        "model_by_seed": {str(seed): group(rows) for seed, rows in report.scores_by_seed.items()},
        "pronunciation": report.pronunciation,
        "teacher_forced": _without_sums(report.teacher_forced),
        "contrasts": [asdict(contrast) for contrast in report.contrasts],
        "published": [asdict(row) for row in report.published],
        "notes": report.notes,
        "overlap": report.overlap,
        "protocol_hash": report.protocol_hash,
        "protocol": report.protocol,
        "provenance": report.provenance,
        "timings": report.timings,
    }


def _without_sums(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without single conversations, which have a file of their own."""
    return None if scores is None else {name: value for name, value in scores.items() if name != "sums"}


def rows(report: Report) -> Iterator[dict[str, Any]]:
    """The lines of utterances.jsonl: each utterance with its terms of every metric, on which `compare` works."""
    for u in report.utterances:
        terms = {name: metric(name).terms(u) for name in report.metrics}
        yield u.to_row() | {"terms": {name: list(pair) for name, pair in terms.items() if pair is not None}}
