"""The command `export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csm.data.dataset import ShardedDataset
from csm.files import atomic_directory
from data_prep.config import DataPrepConfig, ExportFormat, work_folder
from data_prep.export.hugging_face import export_hugging_face
from data_prep.export.lhotse import export_lhotse


@dataclass
class Exported:
    """The result of an export."""

    folder: Path
    conversations: int
    without_audio: list[str]  # a line for each conversation that could not be written


def export(cfg: DataPrepConfig) -> Exported:
    """Writes the dataset `cfg.output` to `cfg.export.to`, which appears only when it is complete.

    Raises:
        FileNotFoundError: there is no dataset.
        ValueError: the target exists, or no conversation has its audio any more.
        OSError: writing fails.
    """
    dataset = ShardedDataset(cfg.output)
    to = Path(cfg.export.to or f"{str(cfg.output).rstrip('/')}.{cfg.export.format.value}")
    if to.exists():
        raise ValueError(f"{to}: exists already; choose another export.to=...")
    write = {ExportFormat.lhotse: export_lhotse, ExportFormat.huggingface: export_hugging_face}[cfg.export.format]
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(to) as folder:
        without_audio = list(write(dataset, work_folder(cfg), folder, to))
        if len(without_audio) == len(dataset):
            raise ValueError(f"{cfg.output}: no conversation has its audio; the first: {without_audio[0]}")
    return Exported(to, len(dataset) - len(without_audio), without_audio)
