"""The report of an evaluation: scores of every system and condition, reservations, protocol and provenance."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from csm.config import EvalConfig, EvaluateConfig
from csm.evaluation.contrasts import contrasts
from csm.evaluation.judges import Judges
from csm.evaluation.metrics import METRICS
from csm.evaluation.overlap import Overlap, find_overlap
from csm.evaluation.prompts import PromptSet
from csm.evaluation.pronunciation import pronunciation_results
from csm.evaluation.report import PublishedView, Report
from csm.evaluation.scores import NotRun, SystemScores, score_system
from csm.evaluation.stages import optional_facts
from csm.evaluation.store import key_of
from csm.evaluation.suites.suite import Suite, comparable
from csm.evaluation.text_norm import TextNormalizer
from csm.evaluation.utterances import CODEC_LEVELS, System, Utterance
from csm.formats.layouts import Checkpoint
from csm.inference.generator import Generator
from csm.provenance import code_version, hardware, package_versions

FEW_CLUSTERS = 10
"""Below this many clusters a bootstrap interval tends to be too narrow; the report says so."""


def summarize(
    cfg: EvaluateConfig,
    suite: Suite,
    opened: Checkpoint,
    generator: Generator,
    weights: str,
    prompt_set: PromptSet,
    utterances: list[Utterance],
    judges: Judges,
    normalizer: TextNormalizer,
    wall_seconds: float,
) -> Report:
    """Everything that the report says. weights: hash of the model's."""
    settings = cfg.eval
    scores, by_seed = _all_scores(settings, suite, generator, prompt_set, utterances, judges)
    overlap = find_overlap(prompt_set, opened.datasets)
    described = judges.describe()
    protocol = _protocol(settings, suite, prompt_set, described, normalizer)
    names = [judge.name for judge in (judges.recognizer, judges.embedder) if judge is not None]
    checkpoint = Path(cfg.checkpoint)
    return Report(
        title=f"Evaluation of {opened.training.get('name') or checkpoint.resolve().name}",
        subtitle=_subtitle(settings, suite, prompt_set),
        suite=suite.name,
        scoring=suite.scoring,
        prompts=prompt_set.prompts,
        utterances=utterances,
        scores=scores,
        scores_by_seed=by_seed,
        embedder=judges.embedder.name if judges.embedder else settings.speaker_model_kind.name,
        recognizer=judges.recognizer.name if judges.recognizer else settings.asr.name,
        rate=normalizer.measure,
        notes=_notes(scores, prompt_set, utterances, opened.datasets, overlap, normalizer),
        published=[
            PublishedView(row.system, row.values, row.source, comparable(suite, row, names)) for row in suite.published
        ],
        contrasts=contrasts(utterances, suite.metrics, suite.control_suffix),
        pronunciation=pronunciation_results(utterances, settings.bootstrap_samples),
        overlap=overlap.to_dict(),
        protocol=protocol,
        protocol_hash=key_of(**protocol),
        provenance={
            "code": code_version(),
            "checkpoint": _checkpoint_facts(opened, generator, weights),
            "suite": suite.facts() | {"source": suite.source, "licence": suite.licence, "checksum": suite.checksum},
            "prompts": prompt_set.origin | {"prompts": len(prompt_set.prompts)},
            "sampling": protocol["sampling"],
            **described,
            "text_normalizer": {"name": protocol["text_normalizer"]},
            "statistics": protocol["statistics"],
            "packages": package_versions("torch", "transformers", "jiwer", "moshi", "numpy", "soxr", "soundfile"),
            "hardware": hardware(cfg.device),
        },
        timings={
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "wall_seconds": round(wall_seconds, 1),
        }
        | _speed(utterances),
    )


def _all_scores(
    settings: EvalConfig,
    suite: Suite,
    generator: Generator,
    prompt_set: PromptSet,
    utterances: list[Utterance],
    judges: Judges,
) -> tuple[list[SystemScores], dict[int, list[SystemScores]]]:
    """Scores of systems by conditions, and of the model for each seed, if there are several."""
    known = (*METRICS, *judges.metrics)
    lacking = {name: f"this version has no metric {name}" for name in suite.metrics if name not in known}
    levels = {CODEC_LEVELS[n] for n in settings.codec_levels if n < generator.codec.num_codebooks}
    systems = [system for system in System if system in levels or system not in CODEC_LEVELS.values()]

    def score(system: System, takes: int, seed: int | None = None) -> list[SystemScores]:
        found = []
        for condition in dict.fromkeys(prompt.condition for prompt in prompt_set.prompts):
            asked = [prompt for prompt in prompt_set.prompts if prompt.condition == condition]
            mine = [u for u in utterances if u.system is system and u.condition == condition]
            missing = [prompt.missing_reference for prompt in asked if prompt.missing_reference]
            found.append(
                score_system(
                    system,
                    mine if seed is None else [u for u in mine if u.seed == seed],
                    takes * len(asked),
                    (*suite.metrics, *judges.metrics),
                    unavailable=judges.unavailable | lacking,
                    bootstrap_samples=settings.bootstrap_samples,
                    condition=condition,
                    missing=f"original recordings not found ({missing[0]})" if missing else None,
                )
            )
        return found

    seeds = settings.seeds
    spoken = (System.model, System.control)
    scores = [found for system in systems for found in score(system, len(seeds) if system in spoken else 1)]
    by_seed = {seed: score(System.model, 1, seed) for seed in seeds} if len(seeds) > 1 else {}
    return scores, by_seed


def _protocol(
    settings: EvalConfig, suite: Suite, prompt_set: PromptSet, judges: dict[str, Any], normalizer: TextNormalizer
) -> dict[str, Any]:
    """Everything but the model that decides the numbers: equal protocols give numbers that may be compared."""
    prompts = [
        [p.id, p.condition, p.text, p.speaker, [[turn.speaker, turn.text] for turn in p.context]]
        for p in prompt_set.prompts
    ]
    return {
        "suite": suite.facts(),
        "prompts": {"count": len(prompts), "hash": key_of(prompts=prompts)},
        "sampling": {
            "temperature": settings.temperature,
            "topk": settings.topk,
            **optional_facts(settings),
            "seeds": list(settings.seeds),
            "sampling_seed": "hash of seed and prompt id",
            "max_audio_seconds": settings.max_audio_seconds,
            "context_turns": settings.context_turns,
            "retries": "none",
            "guards": "none",
            "watermark": "none",
        },
        "judges": judges,
        "text_normalizer": normalizer.name,
        "statistics": {
            "interval": "95 % expanded percentile bootstrap, numerator and denominator together",
            "cluster": "prompt groups (same show, call or voice)",
            "replicates": settings.bootstrap_samples,
            "bootstrap_seed": 0,
        },
    }


def _notes(
    scores: list[SystemScores],
    prompt_set: PromptSet,
    utterances: list[Utterance],
    trained_on: list[str],
    overlap: Overlap,
    normalizer: TextNormalizer,
) -> list[str]:
    """Reservations that a reader must know before believing the headline."""
    notes = list(prompt_set.notes)
    prompts = prompt_set.prompts
    same_data = "dataset" in prompt_set.origin and _same_place(prompt_set.origin["dataset"], trained_on)
    if same_data and prompt_set.origin["split"] == "train":
        notes.append(
            "These prompts were in the training data: the numbers say how well the model remembers, not how well it "
            "speaks what it has not seen."
        )
    if same_data and len(trained_on) > 1:
        notes.append(
            f"The model was trained on {len(trained_on)} datasets; all prompts are from "
            f"{prompt_set.origin['dataset']} (eval.dataset=DIR chooses another)."
        )
    if not prompts:
        return notes
    notes.append(overlap.sentence())
    clusters = len({prompt.cluster for prompt in prompts})
    if clusters < FEW_CLUSTERS:
        notes.append(f"Only {clusters} clusters of prompts: intervals tend to be too narrow below {FEW_CLUSTERS}.")
    for system in scores:
        wer = system.metrics.get("wer_corpus")
        if wer is not None and not isinstance(wer, NotRun) and wer.value == 0:
            mine = [u for u in utterances if u.system is system.system and u.condition == system.condition]
            words = sum(u.errors.reference_words for u in mine if u.errors)
            notes.append(
                f"{system.title}: no error in {words} {normalizer.unit}s. The bootstrap cannot see beyond that; by "
                f"the rule of three the true rate may be up to {300 / words:.1f} %."
            )
        if 0 < system.scored < system.expected:
            lacking = system.expected - system.scored
            notes.append(f"{system.title}: {lacking} of {system.expected} prompts have no original recording.")
        if system.empty_references:
            notes.append(
                f"{system.title}: {system.empty_references} texts hold no word after normalization; their "
                f"transcripts count as insertions in the corpus {normalizer.measure} and have no part in the mean."
            )
    context = {prompt.id: len(prompt.context) for prompt in prompts}
    shortened = sum(u.context_turns is not None and u.context_turns < context[u.prompt] for u in utterances)
    if shortened:
        notes.append(f"{shortened} generations had their oldest context turns dropped to fit the model's positions.")
    return notes


def _same_place(path: str, others: list[str]) -> bool:
    return any(Path(path).resolve() == Path(other).resolve() for other in others)


def _subtitle(settings: EvalConfig, suite: Suite, prompts: PromptSet) -> str:
    origin = prompts.origin
    if not prompts.prompts:
        return f"{settings.name}: nothing is spoken"
    if "dataset" in origin:
        source = f"{Path(origin['dataset']).name}, split {origin['split']}"
    else:
        source = Path(origin["prompts_file"]).name
    sampling = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature}, top-k {settings.topk}"
    if settings.guidance != 1:
        sampling += f", guidance {settings.guidance:g}"
    if settings.num_codebooks is not None:
        sampling += f", {settings.num_codebooks} codebooks"
    seeds = "1 seed" if len(settings.seeds) == 1 else f"{len(settings.seeds)} seeds"
    return f"{settings.name} ({suite.name}): {len(prompts.prompts)} prompts of {source}; {sampling}; {seeds}"


def _speed(utterances: list[Utterance]) -> dict[str, Any]:
    spoken = [u for u in utterances if u.system is System.model]
    compute = sum(u.compute_seconds for u in spoken if u.compute_seconds is not None)
    audio = sum(u.seconds for u in spoken)
    return {
        "generated_audio_seconds": round(audio, 1),
        "generation_compute_seconds": round(compute, 1),
        "compute_seconds_per_audio_second": round(compute / audio, 3) if audio else None,
    }


def _checkpoint_facts(checkpoint: Checkpoint, generator: Generator, weights: str) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "weights_hash": weights,
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "dtype": str(next(generator.model.parameters()).dtype).removeprefix("torch."),
        "training": checkpoint.training,
        "codec": generator.codec.info.to_dict(),
        "tokenizer": generator.tokenizer.identity,
    }
