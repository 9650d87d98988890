"""Where metrics go: one JSON object a line in the run's folder, and W&B runs that are continued with the run.

A line is appended in one write, so a killed run leaves whole lines. A resumed run that comes back to a step already
written removes the lines from there on before it writes them anew: every step is there once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from csm.files import write_atomically

log = logging.getLogger(__name__)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of `JsonLines`; a last line that was cut short (the machine went down) is left out."""
    content = path.read_bytes() if path.is_file() else b""
    whole, _, _ = content.rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


class JsonLines:
    """An append-only file of records that each have a "step". One process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._began = False

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line. NaN and infinity, which JSON does not know, become null."""
        record = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        if not self._began:
            self._go_back_to(record)
            self._began = True
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _go_back_to(self, record: dict[str, Any]) -> None:
        """Removes what an earlier process wrote about this step and later ones, which are run again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file():
            return
        before = read_lines(self.path)
        # A line of the same step may be another kind of record: training and validation share the file.
        kept = [
            line
            for line in before
            if line["step"] < record["step"]
            or (line["step"] == record["step"] and not (line.keys() & record.keys()) - {"step"})
        ]
        if len(kept) < len(before):
            log.info("%s: %d lines removed, their steps are run again", self.path, len(before) - len(kept))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class JsonLinesLogger(Logger):
    """Lightning logger: the whole history of a run in one file, whatever it was interrupted by."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._lines = JsonLines(path)

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._lines.append({"step": step, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in run_dir/config.yaml."""


def wandb_logger(run_dir: str, ckpt_path: str | None, **options: Any) -> WandbLogger:
    """A W&B logger that continues the W&B run of this folder, whose id is kept in run_dir/wandb_id.

    ckpt_path: None starts the training anew, and so does W&B; options: of Lightning's WandbLogger.
    """
    file = Path(run_dir) / "wandb_id"
    if rank_zero_only.rank == 0 and (ckpt_path is None or not file.is_file()):  # the only rank that logs
        write_atomically(file, lambda temporary: temporary.write_text(secrets.token_hex(4)))
    identity = file.read_text() if file.is_file() else None
    return WandbLogger(save_dir=run_dir, id=identity, resume="allow", **options)
