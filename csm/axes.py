"""Axes of small plots as inline SVG, in the page's own colors."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 36


class Axes:
    """Axes over ranges of values, from the lower to the upper one; `x` and `y` place values on them."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], x_title: str, y_title: str) -> None:
        self.xs, self.ys, self.x_title, self.y_title = xs, ys, x_title, y_title

    def x(self, value: float) -> float:
        low, high = self.xs
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1)

    def svg(
        self, marks: Sequence[str], x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
    ) -> str:
        bottom = HEIGHT - BOTTOM
        parts = [f'<line x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
        for value, label in x_ticks:
            parts.append(f'<text x="{self.x(value):.1f}" y="{bottom + 14}" text-anchor="middle">{escape(label)}</text>')
        for value, label in y_ticks:
            height = self.y(value)
            parts.append(f'<line x1="{LEFT}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(self.x_title)}</text>')
        label = f"{escape(self.y_title)} by {escape(self.x_title)}"
        box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"'
        return f'<svg class="plot" {box}>{"".join([*parts, *marks])}</svg>'
