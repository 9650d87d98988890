"""Trains a CSM: python train.py model=csm_1b data.path=... (see configs/ and docs/training.md)."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf

from csm.config import register_schemas
from csm.errors import user_errors
from csm.training.run import train

register_schemas()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float | None:
    with user_errors():
        return train(OmegaConf.to_object(config))


if __name__ == "__main__":
    main()
