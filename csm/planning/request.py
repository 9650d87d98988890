"""The command line of `csm plan`: its own keys, and those of train.py, composed as train.py does."""

from __future__ import annotations

from dataclasses import fields

from omegaconf import OmegaConf

from csm.compose import TRAIN
from csm.config import PlanConfig, TrainConfig


def read_request(words: list[str]) -> tuple[TrainConfig, PlanConfig]:
    """Splits `key=value` words by whose key they are. `data.path` may be left out: no data is read.

    Raises ValueError, Hydra's and OmegaConf's errors for words that are no options, or have wrong values.
    """
    own = {field.name for field in fields(PlanConfig)}
    plan_words = [word for word in words if word.partition("=")[0] in own]
    options = OmegaConf.merge(OmegaConf.structured(PlanConfig), OmegaConf.from_dotlist(plan_words))
    config = TRAIN.compose([word for word in words if word not in plan_words])
    if OmegaConf.is_missing(config.data, "path"):
        config.data.path = ""
    plan = OmegaConf.to_object(options)
    assert isinstance(plan, PlanConfig)
    return TRAIN.options(config), plan
