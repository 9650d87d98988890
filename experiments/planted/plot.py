"""Drawing of docs/images/planted_faults.svg from results.json: `python -m experiments.planted.plot`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.figures import AUDIO, TEXT, note, svg
from experiments.planted.run import RESULTS

FIGURE = Path(__file__).parents[2] / "docs/images/planted_faults.svg"
WIDTH, HEIGHT, COLUMNS = 240, 190, 4  # of a panel with its margins
LEFT, TOP, RIGHT = 34, 30, 10
MOST = 6.0  # nats at the top of a panel
CURVES = (("loss_c0", "codebook 0", TEXT), ("loss_decoder", "other codebooks, mean", AUDIO))


def panel(run: dict[str, Any], left: float, top: float) -> list[str]:
    """The losses of one run, and what its last validation found about labels; top, left: its corner."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - 24
    last = int(run["records"][-1]["step"])

    def place(step: float, nats: float) -> str:
        return f"{left + LEFT + width * step / last:.1f} {top + TOP + height * (1 - min(nats, MOST) / MOST):.1f}"

    found = [record for record in run["records"] if "val/leak" in record][-1]
    checks = f"shift {found['val/shift_gain']:+.2f}, leak {100 * found['val/leak']:.2g} %"
    parts = [note(left + LEFT, top + TOP - 8, run["fault"], 13)]
    parts.append(note(left + WIDTH - RIGHT, top + TOP + 12, checks, 10, "end"))
    for nats in range(0, int(MOST) + 1, 2):
        parts.append(f"<path d='M{place(0, nats)}L{place(last, nats)}' stroke='#dddddd'/>")
        parts.append(note(left + LEFT - 6, float(place(0, nats).split()[1]) + 4, str(nats), 10, "end"))
    for step in range(0, last + 1, 20):
        parts.append(note(float(place(step, 0).split()[0]), top + HEIGHT - 10, str(step), 10, "middle"))
    for name, _, color in CURVES:
        for prefix, dashes in (("train", "none"), ("val", "5 4")):
            points = [(r["step"], r[f"{prefix}/{name}"]) for r in run["records"] if f"{prefix}/{name}" in r]
            line = "L".join(place(*point) for point in points)
            parts.append(
                f"<path d='M{line}' stroke='{color}' stroke-width='1.8' stroke-dasharray='{dashes}' fill='none'/>"
            )
    return parts


def main() -> None:
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    runs = [run for run in runs if run["seed"] == runs[0]["seed"]]
    rows = -(-len(runs) // COLUMNS)
    parts = []
    for number, run in enumerate(runs):
        parts += panel(run, number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT)
    bottom, left = rows * HEIGHT + 16, LEFT
    for _, label, color in CURVES:
        for prefix, dashes in (("training", "none"), ("validation", "5 4")):
            line = f"stroke='{color}' stroke-width='1.8' stroke-dasharray='{dashes}'"
            parts += [f"<path d='M{left} {bottom - 4}h26' {line}/>", note(left + 32, bottom, f"{label}, {prefix}", 11)]
            left += 225
    axes = "nats per frame over optimizer steps; losses above 6 are drawn at 6"
    checks = "shift, leak: val/shift_gain and val/leak at the end"
    words = note(LEFT, bottom + 20, f"{axes}; {checks}", 11)
    FIGURE.write_text(svg(COLUMNS * WIDTH, bottom + 34, *parts, words), encoding="utf-8")


if __name__ == "__main__":
    main()
