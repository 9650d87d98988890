"""Bundled demo recordings: short dialogues of a phone system and a caller.

The phone system is a recorded human voice (speaker 0), the caller a synthetic one (speaker 1). Sources and licence:
ATTRIBUTION.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from csm.config import TrainConfig
from csm.data.dataset import DatasetInfo
from csm.data.index import DATASET_FILE
from data_prep.config import DataPrepConfig, ExecutorConfig, ExecutorKind
from data_prep.prepare import prepare

MANIFEST = Path(__file__).resolve().parent / "manifest.jsonl"


def demo_config(cfg: DataPrepConfig) -> DataPrepConfig:
    """`cfg` with the bundled recordings as its input; codec, output and the rest stay as they are."""
    return replace(
        cfg,
        input=str(MANIFEST),
        source="demo",
        lang="en",
        licence="CC-BY-SA-3.0",
        executor=ExecutorConfig(ExecutorKind.inline),
    )


def prepare_demo_dataset(cfg: DataPrepConfig) -> DatasetInfo:
    """Prepares the demo recordings into `cfg.output`; the work folder is kept only if `cfg.work` names one."""
    with tempfile.TemporaryDirectory() as work:
        return prepare(replace(demo_config(cfg), work=cfg.work or work))[0]


def prepare_demo(config: TrainConfig) -> None:
    """Prepares the demo recordings into `config.data.path` with `config.codec`, unless a dataset is there already.

    Raises ValueError if `config.data.path` is not set.
    """
    path = config.data.path
    if path is None:
        raise ValueError("data=demo needs data.path, the folder to prepare the demo recordings into")
    if not (Path(path) / DATASET_FILE).is_file():
        prepare_demo_dataset(DataPrepConfig(output=path, codec=config.codec))
