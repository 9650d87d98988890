"""Turns of a prepared dataset or of a prompts file, each after the turns before it. `eval=quickstart` is this one."""

from __future__ import annotations

from pathlib import Path

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import PromptSet, dataset_prompts, file_prompts
from csm.evaluation.suites.suite import Suite, open_dataset
from csm.formats.layouts import Checkpoint


def load(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    if settings.prompts is not None:
        return file_prompts(Path(settings.prompts), codec, settings.max_prompts)
    dataset = open_dataset(settings, checkpoint, settings.split)
    return dataset_prompts(dataset, settings, codec, str(checkpoint.path))


SUITE = Suite(
    name="turns",
    version=1,
    scoring="corpus WER: all errors over all words; mean WER and cosines: the mean over utterances, all seeds pooled",
    metrics=("wer_corpus", "wer_mean", "cosine_recording", "cosine_earlier", "wer_sound", "failed", "speed"),
    load=load,
)
