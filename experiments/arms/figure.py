"""The plot of an experiment: differences of the arms with their intervals, and held-out losses along the trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docs.figures import note, svg
from experiments.arms.experiment import read_measure

COLORS = ("#4878a8", "#d08a3c", "#5b9a5b", "#a85a8a", "#777777", "#b05050")  # of arms, in their order
WIDTH, HEIGHT = 300, 230  # of a panel with its margins
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 40, 36
TITLES = {"steps": "equal steps", "time": "equal processor time"}
CURVES = {"val/loss_c0": "codebook 0, held out", "val/loss_decoder": "all codebooks but 0, held out"}

Scale = Callable[[float], float]


def figure(results: Mapping[str, Any]) -> str:
    """SVG: a row of differences and a row of curves for each comparison."""
    rows: list[list[list[str]]] = []
    for name, comparison in results["comparisons"].items():
        rows.append([_differences(measure, block, results, name) for measure, block in comparison["measures"].items()])
        rows.append([_curve(metric, results, name) for metric in CURVES])
    columns = max(map(len, rows))
    parts = []
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            parts.append(f"<g transform='translate({x * WIDTH} {y * HEIGHT})'>{''.join(panel)}</g>")
    bottom, left = len(rows) * HEIGHT + 18, LEFT
    for number, arm in enumerate(results["experiment"]["arms"]):
        parts.append(f"<circle cx='{left}' cy='{bottom - 4}' r='5' fill='{color_of(number)}'/>")
        parts.append(note(left + 10, bottom, arm))
        left += 40 + 8 * len(arm)
    return svg(max(columns * WIDTH, left), bottom + 14, *parts)


def _differences(measure: str, block: Mapping[str, Any], results: Mapping[str, Any], comparison: str) -> list[str]:
    """Of each arm from the reference: a point for each seed, a bar for the interval."""
    experiment = results["experiment"]
    differences = block["differences"]
    ends = [0.0, *(one[end] for one in differences.values() for end in ("low", "high"))]
    parts, y = axes(f"{read_measure(measure).title}, {TITLES[comparison]}", min(ends), max(ends))
    width = (WIDTH - LEFT - RIGHT) / len(experiment["arms"])
    parts.append(f"<path d='M{LEFT} {y(0):.1f}H{WIDTH - RIGHT}' stroke='#555555' stroke-dasharray='4 3'/>")
    for number, arm in enumerate(experiment["arms"]):
        x, color = LEFT + width * (number + 0.5), color_of(number)
        parts.append(note(round(x, 1), HEIGHT - BOTTOM + 16, arm, 11, "middle"))
        if arm not in differences:
            parts.append(f"<circle cx='{x:.1f}' cy='{y(0):.1f}' r='4' fill='{color}'/>")
            continue
        one = differences[arm]
        parts.append(f"<path d='M{x:.1f} {y(one['low']):.1f}V{y(one['high']):.1f}' stroke='{color}' stroke-width='3'/>")
        for place, value in enumerate(one["by_seed"]):
            dot = x + 5 * (place - (len(one["by_seed"]) - 1) / 2)
            parts.append(f"<circle cx='{dot:.1f}' cy='{y(value):.1f}' r='3' fill='white' stroke='{color}'/>")
    parts.append(note(LEFT, HEIGHT - 6, f"nats from {experiment['reference']}; points: seeds; bar: 95 %", 10))
    return parts


def _curve(metric: str, results: Mapping[str, Any], comparison: str) -> list[str]:
    """Mean over seeds of a metric along the trainings of a comparison."""
    timed = comparison == "time"
    lines: dict[str, list[tuple[float, float]]] = {}
    for arm, facts in results["comparisons"][comparison]["arms"].items():
        runs = [run for run in results["runs"] if run["arm"] == arm and run["steps"] == facts["steps"]]
        scale = facts["processor_seconds"] / facts["steps"] if timed else 1.0
        by_step: dict[float, list[float]] = {}
        for record in (record for run in runs for record in run["curves"]):
            if record.get(metric) is not None:
                by_step.setdefault(record["step"], []).append(record[metric])
        lines[arm] = [(step * scale, sum(values) / len(values)) for step, values in sorted(by_step.items())]
    points = [point for line in lines.values() for point in line]
    if not points:
        return [note(LEFT, TOP - 14, f"{CURVES[metric]}: no validation", 12)]
    last = max(x for x, _ in points)
    parts, y = axes(CURVES[metric], min(v for _, v in points), max(v for _, v in points))

    def place(point: tuple[float, float]) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last:.1f} {y(point[1]):.1f}"

    for number, line in enumerate(lines.values()):
        path = "L".join(map(place, line))
        parts.append(f"<path d='M{path}' stroke='{color_of(number)}' stroke-width='1.8' fill='none'/>")
    for share in (0.0, 0.5, 1.0):
        x = LEFT + (WIDTH - LEFT - RIGHT) * share
        parts.append(note(round(x, 1), HEIGHT - BOTTOM + 16, f"{last * share:.0f}", 10, "middle"))
    parts.append(note(LEFT, HEIGHT - 6, f"nats over {'processor seconds' if timed else 'steps'}; mean of seeds", 10))
    return parts


def axes(title: str, low: float, high: float) -> tuple[list[str], Scale]:
    """Title and grid of a panel over values from low to high, and their places."""
    step = _step(high - low)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    digits = max(0, -math.floor(math.log10(step)))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value / step - first) / (last - first)

    parts = [note(LEFT, TOP - 14, title, 12)]
    for number in range(first, last + 1):
        height = y(number * step)
        parts.append(f"<path d='M{LEFT} {height:.1f}H{WIDTH - RIGHT}' stroke='#dddddd'/>")
        parts.append(note(LEFT - 6, round(height + 4, 1), f"{number * step:.{digits}f}", 10, "end"))
    return parts, y


def _step(span: float) -> float:
    """A round distance of grid lines: about four of them."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-6) / 4))
    steps: Sequence[float] = (power, 2 * power, 5 * power, 10 * power)
    return next(step for step in steps if span / step <= 5)


def color_of(number: int) -> str:
    return COLORS[number % len(COLORS)]
