"""Plots of reports as inline SVG, in the page's own colors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csm.axes import Axes
from csm.evaluation.statistics import Estimate
from csm.evaluation.text_norm import Rate
from csm.evaluation.utterances import System, Utterance


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
    axes = Axes((0, steps), (0, 1), f"{rate}, %", "share of utterances")
    marks = []
    for place, (system, values) in enumerate(shares.items()):
        for step, share in enumerate(values):
            left = axes.x(step + 0.08 + 0.42 * place)
            width, top = axes.x(0.42) - axes.x(0), axes.y(share)
            kind = "model" if system is System.model else "other"
            size = f'width="{width:.1f}" height="{axes.y(0) - top:.1f}"'
            marks.append(f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size}/>')
    ticks = [(step, f"{10 * step}" if step < 10 else ">100") for step in (0, 2, 4, 6, 8, 10)]
    legend = "model (blue) and codec resynthesis (gray)" if len(shares) == 2 else "model"
    return Plot(f"{rate} by utterance: {legend}", axes.svg(marks, ticks, [(0, "0"), (0.5, "50 %"), (1, "100 %")]))


def _voice_by_turn(utterances: Sequence[Utterance]) -> Plot | None:
    """Mean similarity to the speaker's earlier turns by the turn's place in the conversation."""
    by_turn: dict[int, list[float]] = defaultdict(list)
    for u in utterances:
        if u.system is System.model and u.turn is not None and u.cosine_earlier is not None:
            by_turn[u.turn].append(u.cosine_earlier)
    if len(by_turn) < 2:
        return None
    turns = sorted(by_turn)
    axes = Axes((min(turns), max(turns)), (0, 1), "turn of the conversation", "speaker cosine")
    points = [(axes.x(turn), axes.y(sum(by_turn[turn]) / len(by_turn[turn]))) for turn in turns]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = [f'<polyline class="model" points="{line}"/>']
    marks += [f'<circle class="model" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    step = max(1, len(turns) // 8)
    ticks = [(turn, str(turn)) for turn in turns[::step]]
    return Plot("Voice over the conversation", axes.svg(marks, ticks, [(0, "0"), (0.5, "0.5"), (1, "1")]))


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
    axes = Axes((0, longest), (0, slowest), "seconds of speech", "compute s / audio s")
    marks = [f'<circle class="model" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.5"/>' for x, y in points[:1000]]
    ticks = [(share * longest, f"{share * longest:.1f}") for share in (0, 0.5, 1)]
    heights = [(share * slowest, f"{share * slowest:.2f}") for share in (0, 0.5, 1)]
    return Plot("Speed by length, several turns at a time", axes.svg(marks, ticks, heights), timing=True)


def loss_by_codebook(losses: Sequence[Mapping[str, Any]]) -> Plot:
    """Teacher-forced loss of every codebook with its interval. losses: estimates as plain values."""
    most = max(1e-3, *(loss["high"] or loss["value"] for loss in losses))
    axes = Axes((0, len(losses) - 1), (0, most), "codebook", "loss, nats")
    points = [(axes.x(number), loss) for number, loss in enumerate(losses)]
    line = " ".join(f"{x:.1f},{axes.y(loss['value']):.1f}" for x, loss in points)
    marks = [
        f'<line x1="{x:.1f}" y1="{axes.y(loss["low"]):.1f}" x2="{x:.1f}" y2="{axes.y(loss["high"]):.1f}"/>'
        for x, loss in points
        if loss["low"] is not None
    ]
    marks.append(f'<polyline class="model" points="{line}"/>')
    marks += [f'<circle class="model" cx="{x:.1f}" cy="{axes.y(loss["value"]):.1f}" r="2.5"/>' for x, loss in points]
    step = max(1, len(losses) // 8)
    ticks = [(number, str(number)) for number in range(0, len(losses), step)]
    heights = [(share * most, f"{share * most:.2f}") for share in (0, 0.5, 1)]
    return Plot("Loss by codebook", axes.svg(marks, ticks, heights))


RUN_COLORS = 6


def losses_of_runs(runs: Sequence[Sequence[Estimate]]) -> Plot | None:
    """Teacher-forced losses by codebook, a line for each run; None without losses. Run i has the class `run<i>`, modulo
    RUN_COLORS."""
    if not runs or not runs[0]:
        return None
    count, most = len(runs[0]), max(1e-3, *(loss.value for losses in runs for loss in losses))
    axes = Axes((0, count - 1), (0, most), "codebook", "loss, nats")
    marks = []
    for number, losses in enumerate(runs):
        line = " ".join(f"{axes.x(k):.1f},{axes.y(loss.value):.1f}" for k, loss in enumerate(losses))
        marks.append(f'<polyline class="run{number % RUN_COLORS}" points="{line}"/>')
    ticks = [(number, str(number)) for number in range(0, count, max(1, count // 8))]
    heights = [(share * most, f"{share * most:.2f}") for share in (0, 0.5, 1)]
    return Plot("Teacher-forced loss by codebook", axes.svg(marks, ticks, heights))
