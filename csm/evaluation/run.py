"""An evaluation: suite -> speech -> transcripts, voices, measures -> scores -> report.

What is made stays in the report's folder (csm/evaluation/store.py): a run that was killed goes on where it was, and a
new judge or metric needs no new speech. Several processes with the same command share the items (torchrun, a Slurm
array); the last one to finish writes the report.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from csm.codec.base import hash_tensors
from csm.config import EvalConfig, EvaluateConfig
from csm.evaluation.judges import Judges, load_judges
from csm.evaluation.judging import Logs, judged_utterances
from csm.evaluation.metrics import METRICS
from csm.evaluation.pronunciation import pronounce
from csm.evaluation.stages import (
    Take,
    compare_prosody,
    embed_voices,
    make_speech,
    measure,
    plan_takes,
    transcribe,
)
from csm.evaluation.store import Share, Store
from csm.evaluation.suites import find_suite
from csm.evaluation.summary import summarize
from csm.evaluation.teacher_forced import teacher_forced
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wandb_table import send_to_wandb
from csm.evaluation.writer import write_report
from csm.formats.load import generation_dtype
from csm.formats.open import open_checkpoint
from csm.inference.generator import Generator
from csm.quantization.tensors import plain_tensors


def evaluate(cfg: EvaluateConfig) -> Path | None:
    """Runs an evaluation and writes its report; returns the report's folder, None if other ranks have yet to finish.

    Judges that cannot run here leave their reason in the report. Failures of single utterances are counted there too,
    and the utterance is scored as it is.

    Raises:
        FileNotFoundError, ValueError: a mistake in the request (no such checkpoint, another codec, bad prompts, an
            output folder that holds something else); the message says what to change.
    """
    started = time.monotonic()
    checkpoint, settings, share = Path(cfg.checkpoint), cfg.eval, Share.from_environment()
    _check_settings(settings)
    normalizer = load_normalizer(settings.language)
    suite = find_suite(settings.suite)
    opened = open_checkpoint(cfg.checkpoint, cfg.codec_path, cfg.tokenizer_path)
    folder = checkpoint.resolve().parent if checkpoint.exists() else Path("runs") / checkpoint.name  # a hub id
    output = Path(cfg.output) if cfg.output else folder / f"eval-{settings.name}"
    is_taken = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if is_taken and not any((output / name).exists() for name in ("results.json", "stages")):
        raise ValueError(f"{output} exists and is not an evaluation report; choose another folder with output=DIR")

    device = _own_device(cfg.device)
    dtype = generation_dtype(device, None if cfg.dtype is None else cfg.dtype.value)
    model, codec = opened.load_model(device, dtype), opened.read_codec(device)
    tokenizer = opened.read_tokenizer()
    generator = Generator(model, codec, tokenizer, num_codebooks=settings.num_codebooks, share_weights=True)
    prompt_set = suite.load(settings, codec, opened)
    weights = hash_tensors(plain_tensors(model.state_dict()))
    takes = plan_takes(prompt_set.prompts, generator, settings, weights)
    needs = {METRICS[name].needs for name in suite.metrics if name in METRICS}
    judges = load_judges(settings, device, needs) if prompt_set.prompts else Judges.none("nothing is spoken")

    output.mkdir(parents=True, exist_ok=True)
    store = Store(output, share.rank)
    with store.writing():
        _make(share.of(takes), generator, judges, settings, store)
        with store.reporting():
            logs = Logs.read(store, judges)
            if remaining := logs.missing(takes):
                message = f"{remaining} results of other ranks are missing; the last one to finish writes the report"
                Console(stderr=True).print(message, soft_wrap=True)
                return None
            utterances = judged_utterances(takes, logs, normalizer)
            seconds = time.monotonic() - started
            report = summarize(
                cfg, suite, opened, generator, weights, prompt_set, utterances, judges, normalizer, seconds
            )
            if settings.intrinsic_split is not None:
                report.teacher_forced = teacher_forced(generator, opened, settings, weights, store)
            if suite.timings is not None:
                report.timings |= suite.timings(generator, prompt_set, settings)
            write_report(report, output)
            if cfg.wandb_project is not None:
                send_to_wandb(report, output, cfg.wandb_project)
    return output


def _own_device(device: str) -> str:
    """Under torchrun each process on a node takes a GPU of its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def _make(takes: list[Take], generator: Generator, judges: Judges, settings: EvalConfig, store: Store) -> None:
    """This rank's part of all stages."""
    rate = generator.sample_rate
    speech = make_speech(takes, generator, settings, store)
    if judges.recognizer:
        transcribe(takes, speech, judges.recognizer, store, rate)
    if judges.embedder:
        embed_voices(takes, speech, judges.embedder, store, rate)
    if judges.phonemes:
        pronounce(takes, speech, judges.phonemes, store, rate)
    if judges.prosody:
        compare_prosody(takes, speech, judges.prosody, store, rate)
    for judge in judges.measures.values():
        measure(takes, speech, judge, store, rate)


def _check_settings(settings: EvalConfig) -> None:
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"eval.seeds must be one or more different numbers, got {list(settings.seeds)}")
    if settings.temperature == 0 and len(settings.seeds) > 1:
        raise ValueError("eval.temperature=0 is greedy: every seed gives the same speech; set eval.seeds=[0]")
    if settings.max_prompts < 1:
        raise ValueError(f"eval.max_prompts must be at least 1, got {settings.max_prompts}")
    if settings.max_audio_seconds <= 0:
        raise ValueError(f"eval.max_audio_seconds must be positive, got {settings.max_audio_seconds}")
