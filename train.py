"""Trains a CSM: python train.py model=csm_1b data.path=... (see configs/ and docs/architecture.md).

Exit code 0:  trained to the end.
          2:  something in the request or on the disk is wrong; one line says what and how to mend it.
          75: stopped by SIGTERM or SIGUSR1 and saved; the same command continues.
          1:  anything else, with a traceback. torchrun makes 1 of all codes but 0.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from csm.config import register_schemas
from csm.errors import user_errors

register_schemas()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float | None:
    from csm.training.build import train  # only now: `--help` and mistakes need not wait for torch

    job = HydraConfig.get()
    if job.mode is RunMode.MULTIRUN:  # otherwise all jobs of a sweep would share, and resume, one run
        config.run_dir = job.runtime.output_dir
    with user_errors():
        return train(OmegaConf.to_object(config))


if __name__ == "__main__":
    with user_errors():
        main()
