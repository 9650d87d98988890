"""Plots of reports as inline SVG, in the page's own colors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from csm.evaluation.statistics import Estimate
from csm.evaluation.text_norm import Rate
from csm.evaluation.utterances import System, Utterance

WIDTH, HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 36


@dataclass(frozen=True)
class Plot:
    """title: in words. svg: markup that is safe to insert. timing: whether it shows measured times."""

    title: str
    svg: str
    timing: bool = False


def plots(utterances: Sequence[Utterance], rate: Rate) -> list[Plot]:
    """Those for which there is data: error rates, voice by turn, speed by length."""
    found = [_error_rates(utterances, rate), _voice_by_turn(utterances), _speed_by_length(utterances)]
    return [plot for plot in found if plot is not None]


def _error_rates(utterances: Sequence[Utterance], rate: Rate) -> Plot | None:
    """Shares of utterances by error rate, in steps of 10 %; the last bar holds all above 100 %."""
    steps = 11
    shares = {}
    for system in (System.codec_resynthesis, System.model):
        rates = [u.errors.rate for u in utterances if u.system is system and u.errors and u.errors.rate is not None]
        if rates:
            bins = [min(steps - 1, int(10 * rate + 1e-9)) for rate in rates]
            shares[system] = [bins.count(step) / len(bins) for step in range(steps)]
    if System.model not in shares:
        return None
    frame = _Frame((0, steps), (0, 1), f"{rate}, %", "share of utterances")
    marks = []
    for place, (system, values) in enumerate(shares.items()):
        for step, share in enumerate(values):
            left = frame.x(step + 0.08 + 0.42 * place)
            width, top = frame.x(0.42) - frame.x(0), frame.y(share)
            kind = "model" if system is System.model else "other"
            size = f'width="{width:.1f}" height="{frame.y(0) - top:.1f}"'
            marks.append(f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size}/>')
    ticks = [(step, f"{10 * step}" if step < 10 else ">100") for step in (0, 2, 4, 6, 8, 10)]
    legend = "model (blue) and codec resynthesis (gray)" if len(shares) == 2 else "model"
    return Plot(f"{rate} by utterance: {legend}", frame.svg(marks, ticks, [(0, "0"), (0.5, "50 %"), (1, "100 %")]))


def _voice_by_turn(utterances: Sequence[Utterance]) -> Plot | None:
    """Mean similarity to the speaker's earlier turns by the turn's place in the conversation."""
    by_turn: dict[int, list[float]] = defaultdict(list)
    for u in utterances:
        if u.system is System.model and u.turn is not None and u.cosine_earlier is not None:
            by_turn[u.turn].append(u.cosine_earlier)
    if len(by_turn) < 2:
        return None
    turns = sorted(by_turn)
    frame = _Frame((min(turns), max(turns)), (0, 1), "turn of the conversation", "speaker cosine")
    points = [(frame.x(turn), frame.y(sum(by_turn[turn]) / len(by_turn[turn]))) for turn in turns]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = [f'<polyline class="model" points="{line}"/>']
    marks += [f'<circle class="model" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    step = max(1, len(turns) // 8)
    ticks = [(turn, str(turn)) for turn in turns[::step]]
    return Plot("Voice over the conversation", frame.svg(marks, ticks, [(0, "0"), (0.5, "0.5"), (1, "1")]))


def _speed_by_length(utterances: Sequence[Utterance]) -> Plot | None:
    """Compute time over length of the speech, batched as evaluated."""
    points = [
        (u.seconds, u.compute_seconds / u.seconds)
        for u in utterances
        if u.system is System.model and u.seconds and u.compute_seconds is not None
    ]
    if len(points) < 3:
        return None
    longest, slowest = max(x for x, _ in points), max(1e-3, *(y for _, y in points))
    frame = _Frame((0, longest), (0, slowest), "seconds of speech", "compute s / audio s")
    marks = [f'<circle class="model" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5"/>' for x, y in points[:1000]]
    ticks = [(share * longest, f"{share * longest:.1f}") for share in (0, 0.5, 1)]
    heights = [(share * slowest, f"{share * slowest:.2f}") for share in (0, 0.5, 1)]
    return Plot("Speed by length, several turns at a time", frame.svg(marks, ticks, heights), timing=True)


def loss_by_codebook(losses: Sequence[Mapping[str, Any]]) -> Plot:
    """Teacher-forced loss of every codebook with its interval. losses: estimates as plain values."""
    most = max(1e-3, *(loss["high"] or loss["value"] for loss in losses))
    frame = _Frame((0, len(losses) - 1), (0, most), "codebook", "loss, nats")
    points = [(frame.x(number), loss) for number, loss in enumerate(losses)]
    line = " ".join(f"{x:.1f},{frame.y(loss['value']):.1f}" for x, loss in points)
    marks = [
        f'<line x1="{x:.1f}" y1="{frame.y(loss["low"]):.1f}" x2="{x:.1f}" y2="{frame.y(loss["high"]):.1f}"/>'
        for x, loss in points
        if loss["low"] is not None
    ]
    marks.append(f'<polyline class="model" points="{line}"/>')
    marks += [f'<circle class="model" cx="{x:.1f}" cy="{frame.y(loss["value"]):.1f}" r="2.5"/>' for x, loss in points]
    step = max(1, len(losses) // 8)
    ticks = [(number, str(number)) for number in range(0, len(losses), step)]
    heights = [(share * most, f"{share * most:.2f}") for share in (0, 0.5, 1)]
    return Plot("Loss by codebook", frame.svg(marks, ticks, heights))


RUN_COLORS = 6


def losses_of_runs(runs: Sequence[Sequence[Estimate]]) -> Plot | None:
    """Teacher-forced losses by codebook, a line for each run; None without losses. Run i has the class `run<i>`, modulo
    RUN_COLORS."""
    if not runs or not runs[0]:
        return None
    count, most = len(runs[0]), max(1e-3, *(loss.value for losses in runs for loss in losses))
    frame = _Frame((0, count - 1), (0, most), "codebook", "loss, nats")
    marks = []
    for number, losses in enumerate(runs):
        line = " ".join(f"{frame.x(k):.1f},{frame.y(loss.value):.1f}" for k, loss in enumerate(losses))
        marks.append(f'<polyline class="run{number % RUN_COLORS}" points="{line}"/>')
    ticks = [(number, str(number)) for number in range(0, count, max(1, count // 8))]
    heights = [(share * most, f"{share * most:.2f}") for share in (0, 0.5, 1)]
    return Plot("Teacher-forced loss by codebook", frame.svg(marks, ticks, heights))


class _Frame:
    """Axes over ranges of values."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], x_title: str, y_title: str) -> None:
        self.xs, self.ys, self.x_title, self.y_title = xs, ys, x_title, y_title

    def x(self, value: float) -> float:
        low, high = self.xs
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / ((high - low) or 1)

    def svg(
        self, marks: Sequence[str], x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
    ) -> str:
        bottom = HEIGHT - _BOTTOM
        parts = [f'<line x1="{_LEFT}" y1="{bottom}" x2="{WIDTH - _RIGHT}" y2="{bottom}"/>']
        for value, label in x_ticks:
            parts.append(f'<text x="{self.x(value):.1f}" y="{bottom + 14}" text-anchor="middle">{escape(label)}</text>')
        for value, label in y_ticks:
            height = self.y(value)
            parts.append(f'<line x1="{_LEFT}" y1="{height:.1f}" x2="{WIDTH - _RIGHT}" y2="{height:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(self.x_title)}</text>')
        label = f"{escape(self.y_title)} by {escape(self.x_title)}"
        box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"'
        return f'<svg class="plot" {box}>{"".join([*parts, *marks])}</svg>'
