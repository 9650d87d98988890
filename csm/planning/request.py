"""The command line of `csm plan`: its own keys, and those of train.py, composed as train.py does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from csm.config import PlanConfig, TrainConfig, register_schemas

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read_request(words: list[str]) -> tuple[TrainConfig, PlanConfig]:
    """Splits `key=value` words by whose key they are. `data.path` may be left out: no data is read.

    Raises FileNotFoundError without the project's configs/ folder, Hydra's and OmegaConf's errors for wrong words.
    """
    if not (CONFIGS / "train.yaml").is_file():
        raise FileNotFoundError(
            f"{CONFIGS} is not there: `csm plan` runs from a checkout of the project (pip install -e)"
        )
    own = {field.name for field in fields(PlanConfig)}
    plan_words = [word for word in words if word.partition("=")[0] in own]
    options = OmegaConf.merge(OmegaConf.structured(PlanConfig), OmegaConf.from_dotlist(plan_words))
    register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[word for word in words if word not in plan_words])
    if OmegaConf.is_missing(config.data, "path"):
        config.data.path = ""
    return OmegaConf.to_object(config), OmegaConf.to_object(options)
