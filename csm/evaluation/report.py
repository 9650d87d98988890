"""The report of an evaluation, a folder: results.json, utterances.jsonl, report.md, report.html and audio/.

results.json is the contract for programs; report.html is for people: one self-contained file that works from disk,
with a player for every utterance. The templates escape every text, since transcripts are not trusted.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import soundfile

from csm.audio import save_wav
from csm.evaluation.prompts import EvalPrompt
from csm.evaluation.scores import METRICS, NotRun, Score, System, SystemScores, Utterance, score_to_dict

SCHEMA_VERSION = 1
EMBEDDED_PROMPTS = 100
"""The audio of this many prompts is embedded in report.html; players of later ones read the files in audio/."""

_READING = (
    "Values in brackets are 95 % intervals (percentile bootstrap, resampling {unit}). WER: word error rate of the "
    "transcript, lower is better; corpus = all errors / all words, mean = average over utterances. Cosines: similarity "
    "of voices by {embedder}, higher is better; they compare only with numbers of the same embedder. Ground truth is "
    "what the judges say of the recordings, codec resynthesis the best this model's codec allows."
)


@dataclass
class Report:
    """The contents of a report. `provenance` maps group names to plain values."""

    title: str
    subtitle: str
    prompts: list[EvalPrompt]
    utterances: list[Utterance]
    scores: list[SystemScores]
    scores_by_seed: dict[int, SystemScores]  # of the model; empty with one seed
    embedder: str
    recognizer: str
    notes: list[str]
    provenance: dict[str, dict[str, Any]]


def write_report(report: Report, folder: Path) -> None:
    """Fills an existing empty folder. results.json is written last."""
    _write_audio(report, folder)
    rows = [json.dumps(u.to_row(), ensure_ascii=False) + "\n" for u in report.utterances]
    (folder / "utterances.jsonl").write_text("".join(rows), encoding="utf-8")
    view = _view(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csm.evaluation", "templates"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown_text
    for name in ("report.html", "report.md"):
        (folder / name).write_text(environment.get_template(f"{name}.j2").render(view), encoding="utf-8")
    text = json.dumps(_results(report), indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def _results(report: Report) -> dict[str, Any]:
    def system(scores: SystemScores) -> dict[str, Any]:
        return {
            "expected": scores.expected,
            "scored": scores.scored,
            "failures": {flag.name: count for flag, count in scores.flags.items()},
            "empty_references": scores.empty_references,
            "metrics": {name: score_to_dict(score) for name, score in scores.metrics.items()},
        }

    return {
        "schema": SCHEMA_VERSION,
        "title": report.title,
        "recognizer": report.recognizer,
        "speaker_embedder": report.embedder,
        "systems": {scores.system.name: system(scores) for scores in report.scores},
        "model_by_seed": {str(seed): system(scores) for seed, scores in report.scores_by_seed.items()},
        "notes": report.notes,
        "provenance": report.provenance,
    }


def _write_audio(report: Report, folder: Path) -> None:
    (folder / "audio").mkdir()
    number = {prompt.id: i for i, prompt in enumerate(report.prompts)}
    for u in report.utterances:
        if not len(u.audio):
            continue  # an empty output has no file; its row and its flag say so
        seed = "" if u.seed is None else f"-seed{u.seed}"
        u.audio_file = f"audio/{number[u.prompt]:04d}-{u.system.name}{seed}.wav"
        save_wav(folder / u.audio_file, u.audio, u.sample_rate)


def _view(report: Report) -> dict[str, Any]:
    """The values the templates show, as text."""
    return {
        "title": report.title,
        "subtitle": report.subtitle,
        "columns": [
            {"title": "WER, corpus", "detail": report.recognizer},
            {"title": "WER, mean", "detail": "per utterance"},
            {"title": f"Speaker cosine ({report.embedder})", "detail": "with the recording of the same turn"},
            {"title": f"Speaker cosine ({report.embedder})", "detail": "with the speaker's earlier turns"},
        ],
        "rows": _headline_rows(report.scores),
        "reading": _READING.format(unit=report.provenance["statistics"]["cluster"], embedder=report.embedder),
        "notes": report.notes,
        "prompts": [_prompt_view(i, prompt, report) for i, prompt in enumerate(report.prompts)],
        "worst": _worst(report.utterances),
        "provenance": [
            (group.replace("_", " ").capitalize(), _facts(values)) for group, values in report.provenance.items()
        ],
    }


def _headline_rows(all_scores: list[SystemScores]) -> list[dict[str, Any]]:
    # One WER axis for every cell, so that the systems' bars can be compared; at least 0..10 %.
    rates = [s.metrics[name] for s in all_scores for name in ("wer_corpus", "wer_mean")]
    wer_axis = max([0.1] + [rate.high or rate.value for rate in rates if not isinstance(rate, NotRun)])
    return [
        {
            "title": scores.system.value,
            "is_model": scores.system is System.model,
            "cells": [
                _cell(scores.metrics[name], percent=name.startswith("wer"), axis=wer_axis if "wer" in name else 1.0)
                for name in METRICS
            ],
            "scored": scores.scored,
            "expected": scores.expected,
            "flags": [f"{count} with {flag.value}" for flag, count in scores.flags.items() if count],
        }
        for scores in all_scores
    ]


def _cell(score: Score, percent: bool, axis: float) -> dict[str, Any]:
    if isinstance(score, NotRun):
        return {"value": "", "interval": str(score)}

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


def _prompt_view(index: int, prompt: EvalPrompt, report: Report) -> dict[str, Any]:
    mine = [u for u in report.utterances if u.prompt == prompt.id]
    spoken = [u for u in mine if u.system is System.model]
    rates = [u.errors.rate for u in spoken if u.errors and u.errors.rate is not None]
    voices = [u.cosine_earlier if u.cosine_recording is None else u.cosine_recording for u in spoken]
    cosines = [voice for voice in voices if voice is not None]
    given = spoken[0].context_turns if spoken else len(prompt.context)
    total = len(prompt.context)
    return {
        "id": prompt.id,
        "text": prompt.text,
        "speaker": prompt.speaker,
        "context": prompt.context,
        "context_summary": f"{total} turn{'s' * (total != 1)} of context"
        if given == total
        else f"last {given} of {total} context turns",
        "wer": f"{max(rates, default=0):.4f}",
        "cosine": f"{min(cosines, default=1):.4f}",
        "trouble": int(any(u.flags or (u.errors and u.errors.errors) for u in spoken)),
        "systems": [
            {
                "title": system.value,
                "not_run": f"not run: {prompt.missing_reference or 'no recording'}",
                "takes": [
                    _take_view(u, embed=index < EMBEDDED_PROMPTS, many_seeds=bool(report.scores_by_seed))
                    for u in mine
                    if u.system is system
                ],
            }
            for system in System
        ],
    }


def _take_view(u: Utterance, embed: bool, many_seeds: bool) -> dict[str, Any]:
    numbers = [f"{u.seconds:.1f} s"]
    if u.errors and u.errors.rate is not None:
        numbers.append(f"WER {100 * u.errors.rate:.0f} %")
    if u.cosine_recording is not None:
        numbers.append(f"cosine {u.cosine_recording:.3f}")
    elif u.cosine_earlier is not None:
        numbers.append(f"cosine with earlier turns {u.cosine_earlier:.3f}")
    if u.seed is not None and many_seeds:
        numbers.append(f"seed {u.seed}")
    return {
        "source": (_data_uri(u) if embed else u.audio_file) if u.audio_file else None,
        "alignment": u.alignment,
        "numbers": " · ".join(numbers),
        "flags": [flag.value for flag in u.flags],
    }


def _data_uri(u: Utterance) -> str:
    """The audio as MP3, which every browser plays, about 7 kB per second."""
    buffer = io.BytesIO()
    soundfile.write(buffer, u.audio.clamp(-1, 1).numpy(), u.sample_rate, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _worst(utterances: list[Utterance], count: int = 5) -> list[dict[str, str | None]]:
    rates = [(u.errors.rate, u) for u in utterances if u.system is System.model and u.errors and u.errors.rate]
    rates.sort(key=lambda pair: -pair[0])
    return [
        {"prompt": u.prompt, "text": u.text, "hypothesis": u.hypothesis, "wer": f"{100 * rate:.0f} %"}
        for rate, u in rates[:count]
    ]


def _facts(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (dotted name, text) pairs."""
    facts = []
    for name, value in values.items():
        if isinstance(value, dict):
            facts += _facts(value, f"{prefix}{name}.")
        else:
            facts.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return facts


def _markdown_text(value: Any) -> str:
    """Text that neither breaks a Markdown table nor becomes markup."""
    text = " ".join(str(value).split())
    for character in "\\`*[]|":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
