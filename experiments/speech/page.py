"""Page and plot of an experiment on speech, from its results.json."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.figures import note, svg
from experiments.arms.figure import BOTTOM, HEIGHT, LEFT, RIGHT, axes, color_of

WIDTH = 430  # of a panel
DRAWN = ("wer_corpus", "cosine_recording")


def page(found: Mapping[str, Any], name: str, image: Path, remarks: str) -> str:
    """Markdown; equal arguments give equal pages.

    name: of the experiment's folder; image: of the plot, from the folder of the documentation; remarks: what is written
    by hand
    """
    experiment = found["experiment"]
    parts = [
        f"# {experiment['title']}",
        f"**Question.** {experiment['question'].strip()}",
        f"**Answer.** {_answer(found)}",
        f"![{experiment['title']}: word error rate and voice](../{image.as_posix()})",
    ]
    parts += [_table(experiment, metric) for metric in found["metrics"].values()]
    if remarks:
        parts.append(f"## Remarks\n\n{remarks.strip()}")
    return "\n\n".join([*parts, _made(found, name)]) + "\n"


def _answer(found: Mapping[str, Any]) -> str:
    """One sentence: the arms that are separated from the reference in word errors and voice, with intervals."""
    clauses = []
    for metric in (found["metrics"][name] for name in DRAWN if name in found["metrics"]):
        apart = {arm: one for arm, one in metric["differences"].items() if one["separated"]}
        rest = [arm for arm in metric["differences"] if arm not in apart]
        arms = [f"*{arm}* {_difference(metric, one)}" for arm, one in apart.items()] or ["no arm is separated"]
        if apart and rest:
            arms.append(f"not separated: {', '.join(rest)}")
        clauses.append(f"{metric['title']}{' in points' * metric['percent']}: {', '.join(arms)}")
    return f"Against {found['experiment']['reference']}, with 95 % intervals: {'; '.join(clauses)}."


def _table(experiment: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    title = metric["title"] + ", %" * metric["percent"]
    rows = [f"| {title} | | from {experiment['reference']} | p | would show it |", "|---|---:|---:|---:|---:|"]
    for arm in experiment["arms"]:
        cells = [arm, _value(metric, metric["arms"][arm])]
        if one := metric["differences"].get(arm):
            p = "" if one["p_holm"] is None else f"{one['p_holm']:.2g}"
            needed = f"{one['needed']:,} sentences" if one["needed"] else ""
            cells += [_difference(metric, one), f"**{p}**" if one["separated"] else p, needed]
        else:
            cells += ["", "", ""]
        rows.append(f"| {' | '.join(cells)} |")
    rows += [
        f"| {title} | {_number(metric, value)} | | | |"
        for title, value in metric["recorded"].items()
        if value is not None
    ]
    return "\n".join(rows)


def _value(metric: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return _number(metric, one["value"])
    return f"{_number(metric, one['value'])} [{_number(metric, one['low'])}, {_number(metric, one['high'])}]"


def _difference(metric: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return _number(metric, one["value"], "+")
    low, high = _number(metric, one["low"], "+"), _number(metric, one["high"], "+")
    return f"{_number(metric, one['value'], '+')} ({low} to {high})"


def _number(metric: Mapping[str, Any], value: float, sign: str = "") -> str:
    scale, digits = (100, 1) if metric["percent"] else (1, 3)
    return re.sub("^-", "\N{MINUS SIGN}", f"{scale * value:{sign}.{digits}f}")


def _made(found: Mapping[str, Any], name: str) -> str:
    experiment = found["experiment"]
    options = {arm: [f"`{word}`" for word in words] for arm, words in experiment["arms"].items()}
    for arm, scheme in experiment["quantized"].items():
        options[arm].append(f"weights of `csm quantize --scheme {scheme}`")
    arms = "\n".join(f"| {arm} | {', '.join(words) or 'those of all arms'} |" for arm, words in options.items())
    models = len(found["models"])
    common = ", ".join(f"`{word}`" for word in experiment["base"])
    given = "one trained model" if models == 1 else f"{models} trained models"
    command = shlex.join(["python", "-m", "experiments.speech", name, *found["models"], *experiment["words"]])
    return f"""## How it was made

```
{command}
```

{found["sentences"]} held-out sentences by {given}, on {found["machine"]}. Options of all arms: {common}.

| arm | options |
|---|---|
{arms}

Differences are paired: of the same sentences, several seeds of an arm averaged. Intervals are a bootstrap over
conversations, p an exchange of the arms within conversations, adjusted for all tests of the page (Holm); **bold** is
below 0.05. "Would show it": with so many sentences, a difference of the size seen is found in 80 % of repetitions by
one test at 5 %. Intervals hold for {given}, and say nothing of what another training would give. All numbers:
`experiments/{name}/results.json`."""


def figure(found: Mapping[str, Any]) -> str:
    """SVG: word error rate and voice of every arm, with intervals."""
    metrics = [found["metrics"][name] for name in DRAWN if name in found["metrics"]]
    parts = []
    for place, metric in enumerate(metrics):
        parts.append(f"<g transform='translate({place * WIDTH} 0)'>{''.join(_panel(found, metric))}</g>")
    return svg(WIDTH * len(metrics), HEIGHT, *parts)


def _panel(found: Mapping[str, Any], metric: Mapping[str, Any]) -> list[str]:
    scale = 100 if metric["percent"] else 1
    arms = found["experiment"]["arms"]
    values = {arm: [scale * x for x in _ends(metric["arms"][arm])] for arm in arms}
    recorded = {title: scale * value for title, value in metric["recorded"].items() if value is not None}
    # A recording is its own voice: its cosine of 1 would only squeeze the others.
    recorded = {title: value for title, value in recorded.items() if metric["percent"] or value < 0.999}
    shown = [*recorded.values(), *(x for ends in values.values() for x in ends)]
    parts, y = axes(metric["title"] + ", %" * metric["percent"], min(shown), max(shown))
    for title, value in recorded.items():
        parts.append(f"<path d='M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}' stroke='#555555' stroke-dasharray='4 3'/>")
        parts.append(note(WIDTH - RIGHT, round(y(value) - 3, 1), title, 10, "end"))
    width = (WIDTH - LEFT - RIGHT) / len(arms)
    for number, arm in enumerate(arms):
        x, (value, low, high) = LEFT + width * (number + 0.5), values[arm]
        parts.append(f"<path d='M{x:.1f} {y(low):.1f}V{y(high):.1f}' stroke='{color_of(number)}' stroke-width='3'/>")
        parts.append(f"<circle cx='{x:.1f}' cy='{y(value):.1f}' r='4' fill='{color_of(number)}'/>")
        drop = 14 * (number % 2)  # neighbors' names do not touch
        parts.append(note(round(x, 1), HEIGHT - BOTTOM + 14 + drop, arm, 10, "middle"))
    return parts


def _ends(one: Mapping[str, Any]) -> tuple[float, float, float]:
    value = one["value"]
    return value, value if one["low"] is None else one["low"], value if one["high"] is None else one["high"]
