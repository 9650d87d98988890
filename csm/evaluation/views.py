"""Text and numbers for the templates of a report: headline cells, cards with players, the table of items."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from csm.evaluation.contrasts import Contrast
from csm.evaluation.embedded import Room
from csm.evaluation.metrics import metric
from csm.evaluation.plots import loss_by_codebook, plots
from csm.evaluation.prompts import EvalPrompt
from csm.evaluation.pronunciation import pronunciation_tables
from csm.evaluation.report import Report
from csm.evaluation.scores import NotRun, Score, SystemScores
from csm.evaluation.teacher_forced import score_tables
from csm.evaluation.text_norm import Rate
from csm.evaluation.utterances import System, Utterance

MOST_CARDS, CARDS_OF_A_KIND = 100, 25
"""Up to MOST_CARDS prompts each have a card with players; of more, so many of the worst and so many at random do, and
up to MOST_CARDS of the failed. The table of items plays them all."""

_PICTURED = (System.ground_truth, System.model)
"""Systems whose takes have spectrograms."""

_READING = (
    "Values in brackets are 95 % intervals (bootstrap, resampling {unit}). {rate}: {kind} error rate of the "
    "transcript, lower is better; corpus = all errors / all {kind}s, mean = average over utterances, sound = without "
    "utterances that failed. Cosines: similarity of voices by {embedder}, higher is better; they compare only with "
    "numbers of the same embedder. Ground truth is what the judges say of the recordings, codec resynthesis the best "
    "this model's codec allows, the control what they say of speech of another text and of another speaker's voice."
)


def page_view(report: Report, folder: Path) -> dict[str, Any]:
    """The values that the templates of report.html and report.md show. folder: where audio/ is."""
    of_prompt: dict[str, list[Utterance]] = defaultdict(list)
    for u in report.utterances:
        if u.system is not System.control:
            of_prompt[u.prompt].append(u)
    room = Room(folder)
    cards = _chosen(report, of_prompt)
    return {
        "title": report.title,
        "subtitle": report.subtitle,
        "scoring": report.scoring,
        "rate": report.rate,
        "protocol_hash": report.protocol_hash,
        "columns": [_column(name, report) for name in report.metrics],
        "rows": _headline_rows(report.scores),
        "seed_rows": _seed_rows(report),
        "contrasts": [_contrast(contrast, report.rate) for contrast in report.contrasts],
        "reading": _READING.format(
            unit=report.protocol["statistics"]["cluster"],
            rate=report.rate,
            kind="word" if report.rate == "WER" else "character",
            embedder=report.embedder,
        ),
        "notes": report.notes,
        "published_columns": list(dict.fromkeys(name for row in report.published for name in row.values)),
        "published": report.published,
        "tables": [] if report.pronunciation is None else pronunciation_tables(report.pronunciation),
        "teacher_forced": _teacher_forced(report),
        "plots": plots(report.utterances, report.rate),
        "all_cards": len(cards) == len(report.prompts),
        "prompt_count": len(report.prompts),
        "prompts": [_card(prompt, of_prompt[prompt.id], report, room) for prompt in cards],
        "items": [_item(u) for u in report.utterances if u.system is System.model],
        "worst": _worst(report.utterances),
        "failures": _failures(report.utterances),
        "provenance": [(_words(group), _facts(values)) for group, values in report.provenance.items()],
        "timings": _facts(report.timings),
    }


def _teacher_forced(report: Report) -> dict[str, Any] | None:
    scores = report.teacher_forced
    if scores is None:
        return None
    if "not_run" in scores:
        return {"facts": f"not run: {scores['not_run']}.", "tables": [], "plot": None}
    cut = f", {scores['cut']} cut to the model's length" if scores["cut"] else ""
    return {
        "facts": f"{scores['frames']} frames of {scores['conversations']} conversations{cut}; "
        f"{Path(scores['dataset']).name}, split {scores['split']}.",
        "tables": score_tables(scores),
        "plot": loss_by_codebook([one["nats"] for one in scores["codebooks"]]),
    }


def _column(name: str, report: Report) -> dict[str, str]:
    found = metric(name, report.rate)
    if name == "wer_corpus":
        return {"title": found.title, "detail": report.recognizer}
    judge = f" ({report.embedder})" if found.needs == "embedder" else ""
    return {"title": found.title + judge, "detail": found.detail}


def _headline_rows(all_scores: list[SystemScores]) -> list[dict[str, Any]]:
    # One axis for all error rates, so that the systems' bars can be compared; at least 0..10 %. Controls lie beyond it.
    rates = [
        score
        for row in all_scores
        for name, score in row.metrics.items()
        if metric(name).percent and row.system is not System.control
    ]
    axis = max([0.1] + [rate.high or rate.value for rate in rates if not isinstance(rate, NotRun)])
    return [
        {
            "title": scores.title,
            "is_model": scores.system is System.model,
            "cells": [_cell(name, score, axis) for name, score in scores.metrics.items()],
            "scored": scores.scored,
            "expected": scores.expected,
            "flags": [f"{count} with {flag.value}" for flag, count in scores.flags.items() if count],
        }
        for scores in all_scores
    ]


def _cell(name: str, score: Score, rate_axis: float) -> dict[str, Any]:
    if isinstance(score, NotRun):
        return {"value": "", "interval": str(score)}
    percent = metric(name).percent
    axis = rate_axis if percent else max(1.0, score.high or score.value)

    def number(value: float) -> str:
        return f"{100 * value:.1f}" if percent else f"{value:.3f}"

    def x(value: float) -> float:
        return round(4 + 124 * min(1.0, max(0.0, value / axis)), 1)

    low, high = score.low, score.high
    interval = "no interval: one cluster" if low is None or high is None else f"[{number(low)}, {number(high)}]"
    return {
        "value": number(score.value) + (" %" if percent else ""),
        "interval": f"{interval} n={score.items}",
        "x": x(score.value),
        "low_x": None if low is None else x(low),
        "high_x": None if high is None else x(high),
    }


def _seed_rows(report: Report) -> list[tuple[str, list[str]]]:
    return [
        (f"seed {seed}{', ' + row.condition if row.condition else ''}", [
            "" if isinstance(score, NotRun) else _cell(name, score, 1.0)["value"] for name, score in row.metrics.items()
        ])
        for seed, rows in report.scores_by_seed.items()
        for row in rows
    ]  # fmt: skip


def _contrast(contrast: Contrast, rate: Rate) -> list[str]:
    found, difference = metric(contrast.metric, rate), contrast.difference
    scale, digits = (100, 2) if found.percent else (1, 3)

    def number(value: float) -> str:
        return f"{scale * value:+.{digits}f}"

    p, low, high = contrast.p_holm, difference.low, difference.high
    return [
        f"{found.title}, {found.detail}{' (%)' if found.percent else ''}",
        f"{contrast.condition} - {contrast.baseline}",
        number(difference.value),
        "" if low is None or high is None else f"[{number(low)}, {number(high)}]",
        "no test" if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}",
    ]


def _chosen(report: Report, of_prompt: dict[str, list[Utterance]]) -> list[EvalPrompt]:
    """The prompts that get a card: all, or the failed, the worst and some at random."""
    prompts = report.prompts
    if len(prompts) <= MOST_CARDS:
        return prompts

    def spoken(prompt: EvalPrompt) -> list[Utterance]:
        return [u for u in of_prompt[prompt.id] if u.system is System.model]

    failed = [p.id for p in prompts if any(u.flags for u in spoken(p))][:MOST_CARDS]
    worst = sorted(prompts, key=lambda p: -max([_rate(u) for u in spoken(p)], default=0.0))[:CARDS_OF_A_KIND]
    drawn = random.Random(0).sample(prompts, CARDS_OF_A_KIND)
    chosen = {*failed, *(p.id for p in worst), *(p.id for p in drawn)}
    return [prompt for prompt in prompts if prompt.id in chosen]


def _rate(u: Utterance) -> float:
    return (u.errors.rate or 0.0) if u.errors else 0.0


def _card(prompt: EvalPrompt, mine: list[Utterance], report: Report, room: Room) -> dict[str, Any]:
    spoken = [u for u in mine if u.system is System.model]
    voices = [u.cosine_earlier if u.cosine_recording is None else u.cosine_recording for u in spoken]
    cosines = [voice for voice in voices if voice is not None]
    total = len(prompt.context)
    given = spoken[0].context_turns if spoken else total
    systems = [system for system in System if any(u.system is system for u in mine)]
    if System.ground_truth not in systems:
        systems.insert(0, System.ground_truth)
    return {
        "id": prompt.id,
        "text": prompt.text,
        "speaker": prompt.speaker,
        "condition": prompt.condition,
        "context": prompt.context,
        "context_summary": f"{total} turn{'s' * (total != 1)} of context"
        if given == total
        else f"last {given} of {total} context turns",
        "wer": f"{max([_rate(u) for u in spoken], default=0):.4f}",
        "cosine": f"{min(cosines, default=1):.4f}",
        "failed": int(any(u.flags for u in spoken)),
        "trouble": int(any(u.flags or _rate(u) for u in spoken)),
        "systems": [
            {
                "title": system.value,
                "not_run": f"not run: {prompt.missing_reference or 'no recording'}",
                "takes": [_take(u, report, room) for u in mine if u.system is system],
            }
            for system in systems
        ],
    }


def _take(u: Utterance, report: Report, room: Room) -> dict[str, Any]:
    numbers = [f"{u.seconds:.1f} s"]
    if u.errors and u.errors.rate is not None:
        numbers.append(f"{report.rate} {100 * u.errors.rate:.0f} %")
    if u.cosine_recording is not None:
        numbers.append(f"cosine {u.cosine_recording:.3f}")
    elif u.cosine_earlier is not None:
        numbers.append(f"cosine with earlier turns {u.cosine_earlier:.3f}")
    if u.seed is not None and report.scores_by_seed:
        numbers.append(f"seed {u.seed}")
    return {
        "source": room.audio(u.audio_file) if u.audio_file else None,
        "spectrogram": room.spectrogram(u.audio_file) if u.audio_file and u.system in _PICTURED else None,
        "alignment": u.alignment,
        "numbers": " · ".join(numbers),
        "flags": [flag.value for flag in u.flags],
    }


def _item(u: Utterance) -> list[Any]:
    """A row of the page's table of items, in the order of its columns."""
    voice = u.cosine_earlier if u.cosine_recording is None else u.cosine_recording
    return [
        u.prompt,
        u.condition,
        u.seed,
        None if u.errors is None or u.errors.rate is None else round(100 * u.errors.rate, 1),
        None if voice is None else round(voice, 3),
        round(u.seconds, 2),
        ", ".join(flag.value for flag in u.flags),
        u.text,
        u.hypothesis,
        u.audio_file,
    ]


def _worst(utterances: list[Utterance], count: int = 5) -> list[dict[str, str | None]]:
    spoken = [u for u in utterances if u.system is System.model and _rate(u)]
    spoken.sort(key=lambda u: -_rate(u))
    return [
        {"prompt": u.prompt, "text": u.text, "hypothesis": u.hypothesis, "wer": f"{100 * _rate(u):.0f} %"}
        for u in spoken[:count]
    ]


def _failures(utterances: list[Utterance]) -> list[dict[str, str | None]]:
    return [
        {"prompt": u.prompt, "text": u.text, "flags": ", ".join(f.value for f in u.flags), "audio": u.audio_file or ""}
        for u in utterances
        if u.system is System.model and u.flags
    ]


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _facts(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (dotted name, text) pairs."""
    facts = []
    for name, value in values.items():
        if isinstance(value, dict):
            facts += _facts(value, f"{prefix}{name}.")
        else:
            facts.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return facts
