"""The page of an experiment, written from its results.json: question, answer, plot, tables, command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.arms.effects import MOST
from experiments.arms.experiment import read_measure

TITLES = {"steps": "At equal steps", "time": "In equal processor time"}


def page(results: Mapping[str, Any], name: str, image: Path, remarks: str) -> str:
    """Markdown; equal arguments give equal pages.

    name: of the experiment's folder; image: of the plot, from the folder of the documentation; remarks: what is written
    by hand
    """
    experiment = results["experiment"]
    parts = [f"# {experiment['title']}", f"**Question.** {experiment['question'].strip()}"]
    for kind, comparison in results["comparisons"].items():
        parts.append(f"**{TITLES[kind]}.** {_answer(experiment, comparison)}")
    parts.append(f"![{experiment['title']}: differences and curves](../{image.as_posix()})")
    for kind, comparison in results["comparisons"].items():
        parts.append(f"## {TITLES[kind]}")
        parts.append(_arms(experiment, comparison))
        parts += [_table(experiment, measure, block) for measure, block in comparison["measures"].items()]
    if remarks:
        parts.append(f"## Remarks\n\n{remarks.strip()}")
    parts.append(_made(results, name))
    return "\n\n".join(parts) + "\n"


def _answer(experiment: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """One sentence: for each measure the arms that are separated from the reference, with intervals."""
    clauses = []
    for measure, block in comparison["measures"].items():
        title, differences = read_measure(measure).title, block["differences"]
        apart = {arm: one for arm, one in differences.items() if one["separated"]}
        rest = [arm for arm in differences if arm not in apart]
        found = [f"*{arm}* {_signed(one['value'])} ({_interval(one)})" for arm, one in apart.items()]
        if not apart:
            most = max(differences, key=lambda arm: abs(differences[arm]["value"]))
            one = differences[most]
            found = [f"no arm is separated, *{most}* differs most: {_signed(one['value'])} ({_interval(one)})"]
        elif rest:
            found.append(f"not separated: {', '.join(rest)}")
        clauses.append(f"{title}: {', '.join(found)}")
    text = "; ".join(clauses)
    return f"Held-out loss against {experiment['reference']}, in nats with 95 % intervals: {text}."


def _arms(experiment: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    rows = ["| arm | options | steps | processor seconds | wall-clock seconds |", "|---|---|---:|---:|---:|"]
    for arm, facts in comparison["arms"].items():
        options = ", ".join(f"`{word}`" for word in experiment["arms"][arm]) or "those of all arms"
        seconds = f"{facts['processor_seconds']:.0f} | {facts['wall_seconds']:.0f}"
        rows.append(f"| {arm} | {options} | {facts['steps']:,} | {seconds} |")
    return "\n".join(rows)


def _table(experiment: Mapping[str, Any], measure: str, block: Mapping[str, Any]) -> str:
    reference, title = experiment["reference"], read_measure(measure).title
    head = f"| {title}, nats | mean | from {reference} | p | by seed | given these trainings | would show it |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---|"]
    for arm, mean in block["means"].items():
        if arm == reference:
            rows.append(f"| {arm} | {mean['value']:.3f} | | | | | |")
            continue
        one = block["differences"][arm]
        by_seed = ", ".join(map(_signed, one["by_seed"]))
        low, high = one["conversations_alone"]
        alone = f"{_signed(low)} to {_signed(high)}"
        cells = [f"{mean['value']:.3f}", f"{_signed(one['value'])} ({_interval(one)})", f"{one['p_holm']:.2g}"]
        rows.append(f"| {arm} | {' | '.join(cells)} | {by_seed} | {alone} | {_needed(one)} |")
    return "\n".join(rows)


def _needed(one: Mapping[str, Any]) -> str:
    if one["separated"]:
        return "is separated"
    needed = one["needed"]
    seeds, conversations = needed["seeds"], needed["conversations"]
    ways = [f"{seeds} seeds"] if seeds else []
    ways += [f"{conversations:,} conversations"] if conversations else []
    way = " or ".join(ways) or f"neither {MOST:,} seeds nor {MOST:,} times the conversations"
    return f"{way}; this many would show {needed['smallest']:.3f}"


def _made(results: Mapping[str, Any], name: str) -> str:
    experiment, runs = results["experiment"], results["runs"]
    first = next(iter(next(iter(results["comparisons"].values()))["measures"].values()))["means"]
    conversations = first[experiment["reference"]]["conversations"]
    frames = sum(row[0] for row in next(iter(runs[0]["scores"].values())).values())
    machines = sorted({machine_of(run["hardware"]) for run in runs})
    seeds = ", ".join(map(str, experiment["seeds"]))
    options = ["--steps", str(experiment["steps"]), "--seeds", *map(str, experiment["seeds"])]
    command = shlex.join(["python", "-m", "experiments.arms", name, *experiment["words"], *options])
    common = "\n".join(_wrapped([*experiment["base"], *experiment["words"]]))
    return f"""## How it was made

```
{command}
```

{len(runs)} trainings, seeds {seeds}, on {"; ".join(machines)}. Options of all arms:

```
{common}
```

Losses are teacher-forced cross entropies per frame over {conversations} held-out conversations ({frames:,} frames),
with every frame in the depth decoder and without loss weights. "From" has the interval that counts both seeds and
conversations, "by seed" the differences of single seeds; p is adjusted for all tests of a comparison (Holm), and arms
with p < 0.05 count as separated. "Would show it": seeds, or conversations, with which a difference of the size seen is
found in 80 % of repetitions, and the size that this many show. [Experiments](arms.md#intervals) explains all of it.
Per-conversation losses and curves: `experiments/{name}/results.json`."""


def _wrapped(words: list[str], width: int = 110) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def machine_of(hardware: Mapping[str, Any]) -> str:
    threads = hardware["threads"]
    return f"{hardware['processor']}, {threads} thread{'s' * (threads > 1)}, PyTorch {hardware['torch']}"


def _interval(one: Mapping[str, Any]) -> str:
    return f"{_signed(one['low'])} to {_signed(one['high'])}"


def _signed(value: float) -> str:
    """To three digits after the point, with a minus sign that does not break lines."""
    return re.sub("^-", "\N{MINUS SIGN}", f"{value:+.3f}")
