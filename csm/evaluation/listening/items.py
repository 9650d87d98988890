"""Items of a listening test from the report of an evaluation: its recordings, or what the codec leaves of them, beside
the model's speech of the same texts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from csm.evaluation.utterances import CODEC_LEVELS, System
from csm.evaluation.writer import write_text
from csm.files import read_json_lines

RIVALS = {
    system.name: system for system in (System.ground_truth, System.codec_resynthesis, *CODEC_LEVELS.values())
}  # what the model is heard against


def items_of_report(report: Path, output: Path, against: str, seed: int | None) -> tuple[int, list[str]]:
    """Writes `output`, items of the systems `against` and "model"; how many, and the prompts that lack either's audio.

    seed: of the model's turns; None: the first of the evaluation

    Raises:
        ValueError: no report, or no prompt has audio of both.
    """
    lines = report / "utterances.jsonl"
    if not lines.is_file():
        raise ValueError(f"{report}: no report of an evaluation (utterances.jsonl is missing)")
    sides: dict[str, dict[str, str]] = {}
    prompts: list[str] = []
    for _, row in read_json_lines(lines):
        name = _side(row, against, seed)
        if row["system"] == System.model.name:
            prompts.append(row["prompt"])
        if name is not None and row["audio"] is not None:
            path = os.path.relpath(report / row["audio"], output.parent)
            sides.setdefault(row["prompt"], {}).setdefault(name, path)  # of several seeds, the first
    complete = {prompt: systems for prompt, systems in sides.items() if len(systems) == 2}
    if not complete:
        raise ValueError(f"{report}: no prompt has audio of both {against} and the model; evaluate one with recordings")
    records = [{"id": prompt, "systems": systems} for prompt, systems in complete.items()]
    write_text(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return len(records), [prompt for prompt in dict.fromkeys(prompts) if prompt not in complete]


def _side(row: dict[str, Any], against: str, seed: int | None) -> str | None:
    if row["system"] == System.model.name and seed in (None, row["seed"]):
        return System.model.name
    return against if row["system"] == against else None
