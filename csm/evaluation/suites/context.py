"""The same turns spoken after none, some and all of the turns before them, and after another conversation's.

A model that uses its context should speak no worse words with it, come closer to the speaker's voice and to the prosody
of the true turn, and take no words over from it. The control gives as many turns of another conversation: what changes
there is not the meaning of context.
"""

from __future__ import annotations

from dataclasses import replace

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import EvalPrompt, PromptSet, dataset_prompts
from csm.evaluation.suites.suite import Suite, open_dataset
from csm.formats.layouts import Checkpoint

CONTROL = " of another conversation"
LEVELS = (0, 1, 3, 8)
"""Turns of context, up to eval.context_turns."""


def load(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    """Raises ValueError if too few turns have eval.context_turns before them, of two conversations or more."""
    most = settings.context_turns
    dataset = open_dataset(settings, checkpoint, settings.split)
    found = dataset_prompts(dataset, settings, codec, str(checkpoint.path), min_context=most)
    if most < 1 or len({prompt.cluster for prompt in found.prompts}) < 2:
        raise ValueError(
            f"{dataset.path}: suite context needs eval.context_turns of 1 or more, and turns of two conversations (of "
            f"different shows, calls or voices) with {most} turns before them; lower eval.context_turns"
        )
    prompts = []
    for level in [level for level in LEVELS if level < most] + [most]:
        for prompt in found.prompts:
            context = prompt.context[most - level :]
            prompts.append(_variant(prompt, f"{level} turns", context=context))
    for number, prompt in enumerate(found.prompts):
        later = found.prompts[number + 1 :] + found.prompts[:number]
        other = next(candidate for candidate in later if candidate.cluster != prompt.cluster)
        prompts.append(_variant(prompt, f"{most} turns{CONTROL}", context=other.context))
    return PromptSet(prompts, found.origin, found.notes)


def _variant(prompt: EvalPrompt, condition: str, **changes: object) -> EvalPrompt:
    """The prompt under a condition. Voices are compared with all earlier turns, whatever the model was given."""
    return replace(prompt, id=f"{prompt.id}@{condition}", condition=condition, **changes)  # type: ignore[arg-type]


SUITE = Suite(
    name="context",
    version=2,
    scoring=(
        "corpus WER and leakage: errors, and inserted or substituted words of the given context that the text lacks, "
        "over all words; cosines and distances of prosody: means; the same turns under every condition"
    ),
    metrics=(
        "wer_corpus",
        "leakage",
        "cosine_recording",
        "f0_distance",
        "energy_distance",
        "rate_distance",
        "cosine_earlier",
        "failed",
        "speed",
    ),
    load=load,
    control_suffix=CONTROL,
)
