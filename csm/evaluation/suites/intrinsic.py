"""Teacher-forced scores of a split and nothing else: no speech is made, and no judge is asked."""

from __future__ import annotations

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import PromptSet
from csm.evaluation.suites.suite import Suite, open_dataset
from csm.formats.layouts import Checkpoint


def load(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    """No prompts. Raises ValueError if `eval.intrinsic_split` is not set or holds no conversation."""
    if settings.intrinsic_split is None:
        raise ValueError("suite intrinsic needs a split of the dataset, such as eval.intrinsic_split=val")
    dataset = open_dataset(settings, checkpoint, settings.intrinsic_split)
    if not len(dataset.select(settings.intrinsic_split)):
        raise ValueError(
            f"{dataset.path}: split {settings.intrinsic_split!r} holds no conversation; choose another "
            "eval.intrinsic_split"
        )
    return PromptSet([], {"dataset": str(dataset.path), "split": settings.intrinsic_split})


SUITE = Suite(
    name="intrinsic",
    version=1,
    scoring="cross entropy of every supervised frame in nats, without amortization and without weights of the loss",
    metrics=(),
    load=load,
)
