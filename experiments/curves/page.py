"""The page of expected curves and its plot, from the kept runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.figures import note, svg
from experiments.arms.figure import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, axes, color_of

PANELS = (
    ("codebook 0", "train/loss_c0", "val/loss_c0"),
    ("codebooks 1 to 7", "train/loss_c1_7", "val/loss_c1_7"),
    ("word error rate of samples", None, "samples/wer"),
)
COLUMNS = {
    "train/loss_c0": "c0, train",
    "val/loss_c0": "c0, held out",
    "train/loss_c1_7": "c1-7, train",
    "val/loss_c1_7": "c1-7, held out",
    "val/accuracy_c0": "c0 right, held out",
    "val/eos_recall": "ends found",
    "samples/wer": "samples' WER",
    "samples/similarity": "samples' cosine",
}

INTRODUCTION = """# Expected curves

Trainings of [desk](desk.md) as they went, to hold one's own beside: mean cross entropies in nats per frame, training
losses (dashed) over the steps since the validation before, held-out losses of split `val` with whole frames as input.
Samples are a few turns of `val`, spoken with their context and judged by Whisper tiny.en and Resemblyzer. A loss means
something only with the same codec; what carries over is the order in which things happen."""


def page(runs: Mapping[str, Mapping[str, Any]], image: str) -> str:
    """Markdown. runs: kept runs by name; image: address of the plot from the page."""
    parts = [INTRODUCTION, f"![Held-out and training losses, and word errors of samples]({image})"]
    for name, run in runs.items():
        options = ", ".join(f"`{key}={value}`" for key, value in run["options"].items())
        parts += [f"## {name}", options, _table(run["points"])]
    parts.append(
        "`python -m experiments.curves RUN_DIR NAME` adds a run: its numbers go to `experiments/curves/runs/NAME.json`."
    )
    return "\n\n".join(parts) + "\n"


def _table(points: list[dict[str, Any]]) -> str:
    columns = {name: title for name, title in COLUMNS.items() if any(point.get(name) is not None for point in points)}
    rows = [f"| step | positions | {' | '.join(columns.values())} |", "|" + "---:|" * (2 + len(columns))]
    for point in points:
        cells = ["" if point.get(name) is None else f"{point[name]:.2f}" for name in columns]
        rows.append(f"| {point['step']:,} | {point['positions'] / 1e6:.1f} M | {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """SVG: a panel for each group of codebooks and one for the samples, all runs in each."""
    parts = []
    for place, (title, training, held_out) in enumerate(PANELS):
        parts.append(
            f"<g transform='translate({place * WIDTH} 0)'>{''.join(_panel(title, training, held_out, runs))}</g>"
        )
    left = LEFT
    for number, name in enumerate(runs):
        parts.append(f"<circle cx='{left}' cy='{HEIGHT + 14}' r='5' fill='{color_of(number)}'/>")
        parts.append(note(left + 10, HEIGHT + 18, name))
        left += 40 + 8 * len(name)
    return svg(max(WIDTH * len(PANELS), left), HEIGHT + 32, *parts)


def _panel(title: str, training: str | None, held_out: str, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    curves = [
        (number, dashes, [(p["positions"], p[name]) for p in run["points"] if p.get(name) is not None])
        for name, dashes in ((training, "5 4"), (held_out, "none"))
        if name is not None
        for number, run in enumerate(runs.values())
    ]
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return [note(LEFT, 26, f"{title}: not measured", 12)]
    last = max(x for x, _ in points)
    parts, y = axes(title, min(value for _, value in points), max(value for _, value in points))
    for number, dashes, curve in curves:
        line = "L".join(f"{LEFT + (WIDTH - LEFT - RIGHT) * x / last:.1f} {y(value):.1f}" for x, value in curve)
        style = f"stroke='{color_of(number)}' stroke-width='1.8' stroke-dasharray='{dashes}' fill='none'"
        parts.append(f"<path d='M{line}' {style}/>" if line else "")
    for share in (0.0, 0.5, 1.0):
        x = LEFT + (WIDTH - LEFT - RIGHT) * share
        parts.append(note(round(x, 1), HEIGHT - BOTTOM + 16, f"{last * share / 1e6:.1f}", 10, "middle"))
    parts.append(note(LEFT, HEIGHT - 6, "over millions of positions; dashed: training", 10))
    return parts
