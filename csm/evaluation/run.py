"""An evaluation, stage by stage: prompts -> speech -> transcripts and voices -> scores -> report."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from csm.codec.base import hash_tensors
from csm.config import EvalConfig, EvaluateConfig
from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import EvalPrompt, PromptSet, dataset_prompts, file_prompts
from csm.evaluation.report import Report, write_report
from csm.evaluation.scores import NotRun, System, SystemScores, Unavailable, Utterance, score_system
from csm.evaluation.stages import compare_voices, generated, recorded, transcribe
from csm.evaluation.text_norm import load_normalizer
from csm.files import atomic_directory
from csm.formats.layouts import Checkpoint
from csm.formats.load import generation_dtype
from csm.formats.open import open_checkpoint
from csm.inference.generator import Generator
from csm.judges.hub import ModelUnavailable
from csm.judges.recognition import Recognizer
from csm.judges.speaker import SpeakerEmbedder, load_embedder
from csm.judges.whisper import load_recognizer
from csm.provenance import code_version, hardware, package_versions
from csm.quantization.tensors import plain_tensors

FEW_CLUSTERS = 10
"""Below this many clusters a percentile interval tends to be too narrow; the report says so."""


def evaluate(cfg: EvaluateConfig) -> Path:
    """Runs an evaluation and writes its report; returns the report's folder.

    Judges that cannot run here leave their reason in the report. Failures of single utterances are counted there too,
    and the utterance is scored as it is.

    Raises:
        FileNotFoundError, ValueError: a mistake in the request (no such checkpoint, another codec, bad prompts, an
            output folder that holds something else); the message says what to change.
    """
    started = time.monotonic()
    checkpoint, settings = Path(cfg.checkpoint), cfg.eval
    _check_settings(settings)
    opened = open_checkpoint(cfg.checkpoint, cfg.codec_path, cfg.tokenizer_path)
    folder = checkpoint.resolve().parent if checkpoint.exists() else Path("runs") / checkpoint.name  # a hub id
    output = Path(cfg.output) if cfg.output else folder / f"eval-{settings.name}"
    is_taken = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if is_taken and not (output / "results.json").is_file():
        raise ValueError(f"{output} exists and is not an evaluation report; choose another folder with output=DIR")

    dtype = generation_dtype(cfg.device, None if cfg.dtype is None else cfg.dtype.value)
    model, codec = opened.load_model(cfg.device, dtype), opened.read_codec(cfg.device)
    generator = Generator(model, codec, opened.read_tokenizer(), share_weights=True)
    prompt_set = _prompts(settings, generator, opened)
    prompts = prompt_set.prompts
    recognizer, no_recognizer = _load(
        lambda: load_recognizer(settings.asr, settings.asr_model, settings.language, cfg.device)
    )
    embedder, no_embedder = _load(
        lambda: load_embedder(settings.speaker_model_kind, settings.speaker_model, cfg.device)
    )
    normalizer = load_normalizer(settings.language)

    utterances = recorded(prompts, generator) + generated(prompts, generator, settings)
    if recognizer:
        transcribe(utterances, recognizer, normalizer)
    if embedder:
        compare_voices(utterances, prompts, embedder, generator.sample_rate)

    unavailable = Unavailable(no_recognizer, no_embedder)
    scores = [_score(system, utterances, prompts, unavailable, settings) for system in System]
    by_seed = {}
    if len(settings.seeds) > 1:
        for seed in settings.seeds:
            takes = [u for u in utterances if u.seed == seed]
            by_seed[seed] = score_system(System.model, takes, len(prompts), unavailable, settings.bootstrap_samples)
    report = Report(
        title=f"Evaluation of {opened.training.get('name') or checkpoint.resolve().name}",
        subtitle=_subtitle(settings, prompt_set),
        prompts=prompts,
        utterances=utterances,
        scores=scores,
        scores_by_seed=by_seed,
        embedder=embedder.name if embedder else settings.speaker_model_kind.name,
        recognizer=recognizer.name if recognizer else settings.asr.name,
        notes=_notes(scores, prompt_set, utterances, opened.datasets),
        provenance={
            "run": {"finished": datetime.now(timezone.utc).isoformat(timespec="seconds")}
            | {"wall_seconds": round(time.monotonic() - started, 1)}
            | _speed(utterances),
            "code": code_version(),
            "checkpoint": _checkpoint_facts(opened, generator),
            "prompts": prompt_set.origin | {"prompts": len(prompts)},
            "sampling": {
                "temperature": settings.temperature,
                "topk": settings.topk,
                "seeds": list(settings.seeds),
                "sampling_seed": "seed * 1000003 + number of the prompt",
                "max_audio_seconds": settings.max_audio_seconds,
                "context_turns": settings.context_turns,
                "retries": "none",
                "watermark": "none",
            },
            "recognizer": recognizer.describe() if recognizer else {"not run": no_recognizer},
            "text_normalizer": {"name": normalizer.name},
            "speaker_embedder": embedder.describe() if embedder else {"not run": no_embedder},
            "statistics": {
                "interval": "95 % percentile bootstrap, numerator and denominator together",
                "cluster": "prompt groups (same show, call or voice)",
                "replicates": settings.bootstrap_samples,
                "bootstrap_seed": 0,
            },
            "packages": package_versions("torch", "transformers", "jiwer", "moshi", "numpy", "soxr", "soundfile"),
            "hardware": hardware(cfg.device),
        },
    )
    with atomic_directory(output) as folder:
        write_report(report, folder)
    return output


def _check_settings(settings: EvalConfig) -> None:
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"eval.seeds must be one or more different numbers, got {list(settings.seeds)}")
    if settings.temperature == 0 and len(settings.seeds) > 1:
        raise ValueError("eval.temperature=0 is greedy: every seed gives the same speech; set eval.seeds=[0]")
    if settings.max_prompts < 1:
        raise ValueError(f"eval.max_prompts must be at least 1, got {settings.max_prompts}")
    if settings.max_audio_seconds <= 0:
        raise ValueError(f"eval.max_audio_seconds must be positive, got {settings.max_audio_seconds}")


def _prompts(settings: EvalConfig, generator: Generator, checkpoint: Checkpoint) -> PromptSet:
    if settings.prompts is not None:
        return file_prompts(Path(settings.prompts), generator.codec, settings.max_prompts)
    paths = checkpoint.datasets if settings.dataset is None else [settings.dataset]
    if not paths:
        raise ValueError(f"{checkpoint.path} names no training data; give eval.dataset=DIR or eval.prompts=FILE.jsonl")
    found = [ShardedDataset(path) for path in paths if Path(path).is_dir()]
    if not found:
        raise FileNotFoundError(
            f"dataset {', '.join(paths)} is not here; give eval.dataset=DIR or eval.prompts=FILE.jsonl"
        )
    dataset = next((dataset for dataset in found if len(dataset.select(settings.split))), found[0])
    return dataset_prompts(dataset, settings, generator.codec, str(checkpoint.path))


_Judge = TypeVar("_Judge", Recognizer, SpeakerEmbedder)


def _load(load: Callable[[], _Judge]) -> tuple[_Judge | None, str | None]:
    """A judge, or the reason why there is none."""
    try:
        return load(), None
    except ModelUnavailable as error:
        Console(stderr=True).print(f"not run: {error}", style="yellow", markup=False, soft_wrap=True)
        return None, str(error)


def _score(
    system: System,
    utterances: list[Utterance],
    prompts: list[EvalPrompt],
    unavailable: Unavailable,
    settings: EvalConfig,
) -> SystemScores:
    mine = [u for u in utterances if u.system is system]
    expected = len(prompts) * (len(settings.seeds) if system is System.model else 1)
    missing = [prompt.missing_reference for prompt in prompts if prompt.missing_reference]
    reason = f"original recordings not found ({missing[0]})" if missing else None
    return score_system(system, mine, expected, unavailable, settings.bootstrap_samples, reason)


def _notes(
    scores: list[SystemScores], prompt_set: PromptSet, utterances: list[Utterance], trained_on: list[str]
) -> list[str]:
    """Reservations that a reader must know before believing the headline."""
    notes = []
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
    clusters = len({prompt.cluster for prompt in prompts})
    if clusters < FEW_CLUSTERS:
        notes.append(f"Only {clusters} clusters of prompts: intervals tend to be too narrow below {FEW_CLUSTERS}.")
    for system in scores:
        wer = system.metrics["wer_corpus"]
        if not isinstance(wer, NotRun) and wer.value == 0:
            words = sum(u.errors.reference_words for u in utterances if u.system is system.system and u.errors)
            notes.append(
                f"{system.system.value}: no error in {words} words. The bootstrap cannot see beyond that; by the rule "
                f"of three the true rate may be up to {300 / words:.1f} %."
            )
        if 0 < system.scored < system.expected:
            lacking = system.expected - system.scored
            notes.append(f"{system.system.value}: {lacking} of {system.expected} prompts have no original recording.")
        if system.empty_references:
            notes.append(
                f"{system.system.value}: {system.empty_references} texts hold no word after normalization; their "
                "transcripts count as insertions in the corpus WER and have no part in the mean."
            )
    context = {prompt.id: len(prompt.context) for prompt in prompts}
    shortened = sum(u.context_turns is not None and u.context_turns < context[u.prompt] for u in utterances)
    if shortened:
        notes.append(f"{shortened} generations had their oldest context turns dropped to fit the model's positions.")
    return notes


def _same_place(path: str, others: list[str]) -> bool:
    return any(Path(path).resolve() == Path(other).resolve() for other in others)


def _subtitle(settings: EvalConfig, prompts: PromptSet) -> str:
    origin = prompts.origin
    if "dataset" in origin:
        source = f"{Path(origin['dataset']).name}, split {origin['split']}"
    else:
        source = Path(origin["prompts_file"]).name
    sampling = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature}, top-k {settings.topk}"
    seeds = "1 seed" if len(settings.seeds) == 1 else f"{len(settings.seeds)} seeds"
    return f"{settings.name}: {len(prompts.prompts)} prompts of {source}; {sampling}; {seeds}"


def _speed(utterances: list[Utterance]) -> dict[str, Any]:
    spoken = [u for u in utterances if u.system is System.model]
    compute = sum(u.compute_seconds for u in spoken if u.compute_seconds is not None)
    audio = sum(u.seconds for u in spoken)
    return {
        "generated_audio_seconds": round(audio, 1),
        "generation_compute_seconds": round(compute, 1),
        "compute_seconds_per_audio_second": round(compute / audio, 3) if audio else None,
    }


def _checkpoint_facts(checkpoint: Checkpoint, generator: Generator) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "weights_hash": hash_tensors(plain_tensors(generator.model.state_dict())),
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "dtype": str(next(generator.model.parameters()).dtype).removeprefix("torch."),
        "training": checkpoint.training,
        "codec": generator.codec.info.to_dict(),
        "tokenizer": generator.tokenizer.identity,
    }
