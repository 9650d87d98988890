"""The figures of a dataset's report, as inline SVG with the colours of the page (light or dark).

They are bars on an axis, drawn here, so that the page needs no plotting library and every bar has a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from data_prep.report.data import Codebooks, Distribution

_WIDTH, _HEIGHT = 340, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 18, 24


def _svg(width: int, height: int, label: str, parts: Sequence[str], kind: str) -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0):.2f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def number(value: float) -> str:
    """3 significant digits, with thousands separators."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    if abs(rounded) >= 1000:
        return f"{value:,.0f}"
    return f"{rounded:.{max(digits, 0)}f}".rstrip("0").rstrip(".") if digits > 0 else f"{rounded:.0f}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers between `low` and `high`."""
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def histogram(measure: Distribution, mark: float | None = None) -> Markup:
    """Bars, the median and the middle 90 %; `mark` is a limit shown on the axis."""
    low, high = measure.edges[0], measure.edges[-1]
    plot = _WIDTH - _LEFT - _RIGHT
    base = _HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + plot * (min(max(value, low), high) - low) / (high - low)

    highest = max(measure.counts)
    whole_numbers = measure.unit == "" and measure.edges[1] - measure.edges[0] == 1
    parts = []
    for i, count in enumerate(measure.counts):
        left, right = measure.edges[i], measure.edges[i + 1]
        name = number(math.ceil(left)) if whole_numbers else f"{number(left)} to {number(right)} {measure.unit}"
        if i == len(measure.counts) - 1 and measure.above:
            name = f"{number(math.ceil(left) if whole_numbers else left)} {measure.unit} and more"
        if i == 0 and measure.below:
            name = f"{number(right)} {measure.unit} and less"
        height = (base - _TOP) * count / highest
        gap = 1.0 if x(right) - x(left) > 3 else 0.2
        title = f"{name}: {count:,} {measure.of} ({100 * count / measure.count:.1f} %)"
        bar = _bar(x(left) + gap / 2, base - height, x(right) - x(left) - gap, height, "bar", title)
        parts.append(bar)
        # A transparent bar of full height, so that bars too low to see have a tooltip.
        parts.append(_bar(x(left), _TOP, x(right) - x(left), base - _TOP, "hover", title))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    for value in ticks(low, high):
        parts.append(_text(x(value), base + 15, f"{value:g}"))
    if mark is not None and low < mark < high:
        parts.append(f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP - 4}" y2="{base}"/>')
        parts.append(_text(x(mark) + 3, _TOP + 5, number(mark), "start", "tick marked"))
    middle, p5, p95 = (measure.quantiles[name] for name in ("p50", "p5", "p95"))
    y = _TOP - 8
    parts.append(f'<line class="range" x1="{x(p5):.1f}" x2="{x(p95):.1f}" y1="{y}" y2="{y}"/>')
    parts.append(f'<circle class="median" cx="{x(middle):.1f}" cy="{y}" r="3.5"/>')
    label = f"{measure.name}: median {number(middle)} {measure.unit}, middle 90 % {number(p5)} to {number(p95)}"
    return _svg(_WIDTH, _HEIGHT, label, parts, "plot")


def waterfall(steps: list[tuple[str, float, float, str, str]]) -> Markup:
    """Horizontal bars, each of which starts where the one above ends.

    steps: label, begin and end as shares of the total, text next to the bar, kind ("in", "lost" or "kept")
    """
    row, left, right, width = 26, 130, 170, 1060
    plot = width - left - right
    parts = []
    for i, (label, begin, end, text, kind) in enumerate(steps):
        y = i * row
        parts.append(_text(left - 10, y + 17, label, "end", "label"))
        parts.append(_bar(left, y + 4, plot, row - 8, "track", f"{label}: {text}"))
        parts.append(
            _bar(left + plot * begin, y + 4, max(plot * (end - begin), 1.5), row - 8, kind, f"{label}: {text}")
        )
        if i:
            edge = left + plot * (begin if kind == "kept" and not begin else end)
            parts.append(f'<line class="join" x1="{edge:.1f}" x2="{edge:.1f}" y1="{y - 4}" y2="{y + 4}"/>')
        parts.append(_text(width - right + 10, y + 17, text, "start", "label"))
    return _svg(width, row * len(steps), "Hours from input to dataset", parts, "plot wide")


def levels(books: Codebooks, what: str) -> Markup:
    """One bar per level of the codec; what: "used" or "perplexity"."""
    width, height = 520, 170
    left, top, bottom = 40, 10, 24
    base, plot = height - bottom, width - left - 8
    values = [getattr(level, what) for level in books.levels]
    step = plot / len(values)
    parts = []
    for value in ticks(0, books.size, 4):
        y = base - (base - top) * value / books.size
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g}", "end"))
    for i, value in enumerate(values):
        bar_height = (base - top) * value / books.size
        share = f"{number(value)} of {books.size} ({100 * value / books.size:.1f} %)"
        title = f"level {i}: {share}"
        parts.append(_bar(left + i * step + step * 0.12, base - bar_height, step * 0.76, bar_height, "bar", title))
        parts.append(_bar(left + i * step, top, step, base - top, "hover", title))
    every = 1 if len(values) <= 16 else 4
    parts += [_text(left + (i + 0.5) * step, base + 15, str(i)) for i in range(0, len(values), every)]
    parts.append(f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{base}" y2="{base}"/>')
    return _svg(width, height, f"{what} of each codebook level", parts, "plot")
