"""Plots of a training's metrics over its steps, as inline SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from csm.axes import Axes
from csm.stability.labels import CLEARLY
from csm.stability.sample_metrics import STEADY

MOST_POINTS = 500
"""Points of a curve; of more lines, each point is the mean of several."""

COLORS = 6
"""Classes of the page, c0 to c5."""

Points = list[tuple[float, float]]
"""(step, value)"""


@dataclass(frozen=True)
class CurvePlot:
    """title: in words, with the unit. svg: markup that is safe to insert. legend: (number of the color, name)"""

    title: str
    svg: str
    legend: list[tuple[int, str]]


def loss_plot(records: Sequence[dict[str, Any]], skipped: Sequence[int], spikes: Sequence[int]) -> CurvePlot:
    """Losses of codebook 0 and of each group of the others: of training, and dashed of validation."""
    names = _names(records, r"(?:train|val)/(loss_c\d+(?:_\d+)?)")
    names.sort(key=lambda name: int(re.findall(r"\d+", name)[0]))
    training = [_points(records, f"train/{name}") for name in names]
    validation = [_points(records, f"val/{name}") for name in names]
    most = _most(training + validation)
    axes, ticks = _axes(records, (0, most), "loss")
    marks = [_line(axes, curve, number) for number, curve in enumerate(training)]
    marks += [_line(axes, curve, number, " validation") for number, curve in enumerate(validation)]
    marks += [_flag(axes, step, f"step {step}: skipped") for step in skipped]
    marks += [_flag(axes, step, f"step {step}: the loss leaps") for step in spikes]
    legend = [(number, _codebooks(name)) for number, name in enumerate(names)]
    heights = [(share * most, f"{share * most:.2g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    return CurvePlot("Loss, nats per frame; validation dashed", axes.svg(marks, ticks, heights), legend)


def gradient_plot(records: Sequence[dict[str, Any]]) -> list[CurvePlot]:
    """Norms of the gradients by part of the model; none where none was logged."""
    names = _names(records, r"train/(gradient_norm(?:_\w+)?)")
    curves = [[(step, math.log10(y)) for step, y in _points(records, f"train/{name}") if y > 0] for name in names]
    logs = [y for curve in curves for _, y in curve]
    if not logs:
        return []
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    axes, ticks = _axes(records, (low, high), "gradient norm")
    marks = [_line(axes, curve, number) for number, curve in enumerate(curves)]
    powers = range(low, high + 1, max(1, (high - low) // 4))
    legend = [(number, name.removeprefix("gradient_norm").strip("_") or "all") for number, name in enumerate(names)]
    heights = [(power, f"{10.0**power:g}") for power in powers]
    return [CurvePlot("Gradient norm before clipping", axes.svg(marks, ticks, heights), legend)]


def end_plot(records: Sequence[dict[str, Any]], warnings: Sequence[tuple[int, str]]) -> list[CurvePlot]:
    """Share of the end-of-speech frames that are predicted, of training and dashed of validation, with a mark at each
    (step, sentence) of `warnings`; none where no turn has an end."""
    training, validation = (_points(records, f"{phase}/eos_recall") for phase in ("train", "val"))
    if not training and not validation:
        return []
    axes, ticks = _axes(records, (0, 1), "ends")
    marks = [_flag(axes, step, f"step {step}: {sentence}") for step, sentence in warnings]
    marks += [_line(axes, training, 0), _line(axes, validation, 0, " validation")]
    heights = [(share, f"{share:g}") for share in (0, 0.5, 1)]
    return [CurvePlot("Ends of speech predicted, share; validation dashed", axes.svg(marks, ticks, heights), [])]


LABELS = (
    ("val/shift_gain", "Gain of other shifts over that of the labels, nats; below 0 in a healthy run", CLEARLY),
    ("val/leak", "Change of the loss by what comes later, share; 0 in a healthy run", 0.0),
)
"""Plots of the label checks of validations: metrics, titles, bounds."""


def label_plots(records: Sequence[dict[str, Any]]) -> list[CurvePlot]:
    """Findings of validations about labels, with a line at the bound; none that was not measured."""
    plots = []
    for metric, title, bound in LABELS:
        curve = _points(records, metric)
        if not curve:
            continue
        least, most = min(0.0, *(y for _, y in curve)), max(2 * bound, _most([curve]))
        axes, ticks = _axes(records, (least, most), metric)
        heights = [(height, f"{height:.2g}") for height in dict.fromkeys((least, 0.0, most))]
        marks = [_level(axes, bound), _line(axes, curve, 0, " validation")]
        plots.append(CurvePlot(title, axes.svg(marks, ticks, heights), []))
    return plots


SAMPLES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Speaking rate relative to the recordings", {"rate": "rate"}),
    (
        "Ends, share of the samples",
        {"ended": "ended", "end_accuracy": "ended in time", "runaway": "runaway", "empty": "empty"},
    ),
    ("Similarity to the recording's voice, cosine", {"similarity": "similarity"}),
    ("Word error rate", {"wer": "WER"}),
)
"""Plots of sample metrics: titles, and names below `samples/` with their labels."""


def sample_plots(records: Sequence[dict[str, Any]], warnings: Sequence[tuple[int, str]]) -> list[CurvePlot]:
    """Metrics of generated samples, with a mark at each (step, sentence) of `warnings`; none that was not measured."""
    plots = []
    for title, labels in SAMPLES:
        curves = [_points(records, f"samples/{name}", thin=False) for name in labels]
        if not any(curves):
            continue
        most = max(1.5 if "rate" in labels else 1.0, _most(curves))
        least = min(0.0, *(y for curve in curves for _, y in curve))
        axes, ticks = _axes(records, (least, most), title)
        marks = [_flag(axes, step, f"step {step}: {sentence}") for step, sentence in warnings]
        if "rate" in labels:
            marks += [_level(axes, bound) for bound in STEADY]
        for number, (label, curve) in enumerate(zip(labels.values(), curves, strict=True)):
            marks.append(_line(axes, curve, number))
            marks += [_dot(axes, step, y, number, f"step {step:g}: {label} {y:.3f}") for step, y in curve]
        heights = [(least + share * (most - least), f"{least + share * (most - least):.2g}") for share in (0, 0.5, 1)]
        plots.append(CurvePlot(title, axes.svg(marks, ticks, heights), list(enumerate(labels.values()))))
    return plots


def _names(records: Sequence[dict[str, Any]], pattern: str) -> list[str]:
    """Texts of the pattern's group in the keys that match it, each once, in their order."""
    found = (re.fullmatch(pattern, key) for record in records for key in record)
    return list(dict.fromkeys(match[1] for match in found if match))


def _points(records: Sequence[dict[str, Any]], key: str, thin: bool = True) -> Points:
    """The values of a metric, without null; thin: means over neighbours where there are more than MOST_POINTS."""
    points = [(float(record["step"]), float(record[key])) for record in records if record.get(key) is not None]
    size = -(-len(points) // MOST_POINTS)
    if not thin or size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _most(curves: Sequence[Points]) -> float:
    return max((y for curve in curves for _, y in curve), default=0.0) or 1.0


def _axes(
    records: Sequence[dict[str, Any]], ys: tuple[float, float], y_title: str
) -> tuple[Axes, list[tuple[float, str]]]:
    """Axes over all steps, and the ticks of the steps."""
    last = max(record["step"] for record in records)
    places = dict.fromkeys(round(share * last) for share in (0, 0.25, 0.5, 0.75, 1))
    return Axes((0, last), ys, "step", y_title), [(step, f"{step:,}") for step in places]


def _line(axes: Axes, points: Points, color: int, kind: str = "") -> str:
    line = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    return f'<polyline class="c{color % COLORS}{kind}" points="{line}"/>'


def _dot(axes: Axes, step: float, value: float, color: int, text: str) -> str:
    place = f'cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}" r="2.5"'
    return f'<circle class="c{color % COLORS}" {place}><title>{escape(text)}</title></circle>'


def _flag(axes: Axes, step: float, text: str) -> str:
    """A vertical line at a step where something happened."""
    x, (low, high) = axes.x(step), axes.ys
    place = f'x1="{x:.1f}" x2="{x:.1f}" y1="{axes.y(low):.1f}" y2="{axes.y(high):.1f}"'
    return f'<line class="flag" {place}><title>{escape(text)}</title></line>'


def _level(axes: Axes, value: float) -> str:
    """A horizontal line at a bound."""
    (left, right), y = axes.xs, axes.y(value)
    return f'<line class="bound" x1="{axes.x(left):.1f}" x2="{axes.x(right):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _codebooks(name: str) -> str:
    numbers = name.removeprefix("loss_c").split("_")
    return f"codebook {numbers[0]}" if len(numbers) == 1 else f"codebooks {numbers[0]} to {numbers[1]}"
