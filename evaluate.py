"""Measures an exported model: `python evaluate.py checkpoint=DIR [eval=quickstart] [eval.max_prompts=32 ...]`.

Exit code 0: the report is written. 2: something in the request is wrong; one line says what and how to mend it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from csm.config import register_schemas
from csm.errors import user_errors
from csm.evaluation.run import evaluate

register_schemas()


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    with user_errors():
        if OmegaConf.is_missing(config, "checkpoint"):
            raise ValueError(
                "no checkpoint given; usage: python evaluate.py checkpoint=PATH (exported model, .ckpt or hub id)"
            )
        print_headline(evaluate(OmegaConf.to_object(config)))


def print_headline(folder: Path) -> None:
    """The report's headline numbers, for the terminal."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    table = Table("", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("WER %, corpus", "WER %, mean", "cosine, same turn", "cosine, earlier", "failed"):
        table.add_column(title)
    for system, row in results["systems"].items():
        values = [_cell(name, row["metrics"][name]) for name in row["metrics"]]
        table.add_row(system.replace("_", " "), *values, f"{sum(row['failures'].values())}/{row['expected']}")
    console = Console()
    console.print(table)
    console.print(f"WER by {results['recognizer']}, cosines by {results['speaker_embedder']}, 95 % intervals")
    for note in results["notes"]:
        console.print(f"- {note}", markup=False)
    console.print(f"Report with audio: {folder / 'report.html'}", soft_wrap=True)


def _cell(name: str, metric: dict[str, Any]) -> str:
    if "not_run" in metric:
        return "not run"
    scale, digits = (100, 1) if name.startswith("wer") else (1, 3)
    text = f"{scale * metric['value']:.{digits}f}"
    if metric["low"] is not None:
        text += f"\n{scale * metric['low']:.{digits}f}..{scale * metric['high']:.{digits}f}"
    return text


if __name__ == "__main__":
    with user_errors():
        main()
