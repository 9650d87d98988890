"""The page of a dataset's report: its values as text, and the rendered HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jinja2

from csm.data.dataset import DatasetInfo
from data_prep.packing.pack import DUPLICATES_FILE, LEDGER_FILE, REJECTS_FILE, STAGES_FILE
from data_prep.report import figures
from data_prep.report.data import ROW_POSITIONS, Codebooks, Contents, Distribution, RowFill
from data_prep.report.rules import Check, percent
from data_prep.report.samples import Heard, view
from data_prep.report.tables import Duplicates, Flow, Part, RejectionGroup, StageRate, stage_order
from data_prep.report.texts import DISAGREES, ComparedTexts
from data_prep.report.turns import NARROW_BAND, TURNS_FILE, TurnMeasures

JSON_FILE = "report.json"
_LISTED = 12  # sources, and languages, with a row of their own
_MARKS = {"positions": float(ROW_POSITIONS), "bandwidth": NARROW_BAND, "cer": DISAGREES}
_NOTES = {
    "gap_seconds": "negative: it starts before the others have ended",
    "overlap": "on the same track, where it is known; calls with one channel per speaker have none",
    "cer": "of all given texts that were compared, rejected ones included",
    "half_similarity": "cosine of the encoder's embeddings of both halves of turns of 4 s and more",
    "speaker_similarity": "cosine of the encoder's embeddings",
}


@dataclass
class Report:
    """Everything on the page except the speech. `flow`, `rejections`, `duplicates` and `rates` are None if the dataset
    has no such table."""

    info: DatasetInfo
    seed: int
    flow: Flow | None
    rejections: list[RejectionGroup] | None
    duplicates: Duplicates | None
    rates: list[StageRate] | None
    contents: Contents
    fill: RowFill
    turns: TurnMeasures
    codebooks: Codebooks
    texts: ComparedTexts | None  # None: no given text was compared with the sound
    distributions: dict[str, Distribution]
    checks: list[Check]
    heard: list[str]  # keys of the conversations to listen to
    heard_as: str


def render(report: Report, heard: list[Heard]) -> str:
    """The HTML page; all text is escaped, since transcripts are untrusted."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_prep.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["lower_first"] = lambda text: text[0].lower() + text[1:]
    page = environment.get_template("data_report.html.j2")
    return page.render(_view(report), heard=[view(entry) for entry in heard])


class _Time:
    """Formats track time in one unit on the whole page, so that columns can be compared and added."""

    def __init__(self, total_ms: int) -> None:
        self.unit, self._ms = ("h", 3_600_000) if total_ms >= 7_200_000 else ("min", 60_000)
        self._digits = 2 if total_ms / self._ms < 1000 else 1

    def __call__(self, ms: float) -> str:
        return f"{ms / self._ms:,.{self._digits}f}"


def _view(report: Report) -> dict[str, Any]:
    info, contents, flow = report.info, report.contents, report.flow
    speech_ms = contents.hours * 3_600_000
    time = _Time(flow.whole.ms_in if flow else int(speech_ms))
    median = report.distributions["turn_seconds"].quantiles["p50"]
    return {
        "title": info.source,
        "codec": f"{info.codec.name}, {info.codec.num_codebooks} codebooks of {info.codec.codebook_size}",
        "fingerprint": info.fingerprint,
        "bytes": _bytes(sum(shard.size for shard in info.shards)),
        "shards": len(info.shards),
        "unit": time.unit,
        "kept": time(flow.whole.ms_kept if flow else speech_ms),
        "total": time(flow.whole.ms_in) if flow else None,
        "share": percent(flow.whole.ms_kept / flow.whole.ms_in) if flow and flow.whole.ms_in else None,
        "strip": _strip(flow, time) if flow else [],
        "tiles": [
            ("Speech", f"{time(speech_ms)} {time.unit}", f"{contents.frames:,} frames"),
            ("Conversations", f"{contents.conversations:,}", f"of {contents.recordings:,} recordings"),
            ("Turns", f"{contents.turns:,}", f"median {median:.1f} s"),
            ("Speakers", f"{contents.speakers:,}", "counted per recording"),
            (
                "Positions",
                _short(report.fill.positions),
                "counted by a tokenizer" if report.fill.exact else "estimated without a tokenizer",
            ),
            (
                "Padding",
                percent(1 - report.fill.efficiency),
                f"of rows of {ROW_POSITIONS} positions",
            ),
            (
                "Context only",
                percent(1 - contents.loss_frames / contents.frames),
                "of the speech is never predicted",
            ),
            ("Languages", _names(info.langs), f"{_shares(info.langs)}; {_origin(report.turns.langs_detected)}"),
            ("Texts", f"{percent(report.turns.given_texts)} given", "the others are recognized"),
            ("Licences", _names(info.licences), _shares(info.licences)),
            ("Splits", _names(info.totals), _shares(info.totals)),
        ],
        "warnings": [check for check in report.checks if check.broken],
        "checks": report.checks,
        "flow": flow and _flow_view(flow, time),
        "taken_down": info.takedown is not None,
        "plots": [
            _plot_view(name, measure, figures.histogram(measure, _MARKS.get(name)))
            for name, measure in report.distributions.items()
        ],
        "turns_read": f"{report.turns.conversations:,} of {contents.conversations:,} conversations",
        "turns_file": TURNS_FILE,
        "codebooks": report.codebooks,
        "codebook_plots": {what: figures.levels(report.codebooks, what) for what in ("used", "perplexity")},
        "code_hours": f"{report.codebooks.frames / info.codec.frame_rate / 3600:,.2f}",
        "fill": report.fill,
        "efficiency": percent(report.fill.efficiency),
        "row_positions": ROW_POSITIONS,
        "rejects": report.rejections,
        "duplicates": report.duplicates,
        "texts": report.texts,
        "disagrees": DISAGREES,
        "rates": report.rates and [_rate_view(rate) for rate in report.rates],
        "heard_as": report.heard_as,
        "missing": _missing(report),
        "json_file": JSON_FILE,
        "seed": report.seed,
    }


def _plot_view(name: str, measure: Distribution, figure: str) -> dict[str, Any]:
    middle, low, high = (figures.number(measure.quantiles[p]) for p in ("p50", "p5", "p95"))
    return {
        "title": measure.name,
        "median": f"{middle} {measure.unit}".strip(),
        "range": f"{low} to {high}",
        "of": f"{measure.count:,} {measure.of}",
        "note": _NOTES.get(name, ""),
        "figure": figure,
    }


def _strip(flow: Flow, time: _Time) -> list[dict[str, Any]]:
    """Segments of one bar: the time kept, then the time lost in each stage."""
    whole = flow.whole
    parts = [("kept", "kept", whole.ms_kept)]
    parts += [(stage, "lost", ms) for stage, ms in sorted(whole.lost.items(), key=lambda item: stage_order(item[0]))]
    return [
        {"name": name, "kind": kind, "width": 100 * ms / whole.ms_in, "text": f"{time(ms)} {time.unit}"}
        for name, kind, ms in parts
        if ms
    ]


def _flow_view(flow: Flow, time: _Time) -> dict[str, Any]:
    whole, left = flow.whole, flow.whole.ms_in
    steps = [("in", 0.0, 1.0, f"{time(left)} {time.unit}", "in")]
    for stage, ms in sorted(whole.lost.items(), key=lambda item: stage_order(item[0])):
        text = f"{time(ms)} {time.unit}, {percent(ms / whole.ms_in)}"
        steps.append((f"lost in {stage}", (left - ms) / whole.ms_in, left / whole.ms_in, text, "lost"))
        left -= ms
    assert left == whole.ms_kept, "hours in = hours kept + hours lost"
    steps.append(("kept", 0.0, left / whole.ms_in, f"{time(left)} {time.unit}, {percent(left / whole.ms_in)}", "kept"))
    return {
        "figure": figures.waterfall(steps),
        "ms_in": whole.ms_in,
        "ms_kept": whole.ms_kept,
        "ms_lost": sum(whole.lost.values()),
        "total": time(whole.ms_in),
        "kept": time(whole.ms_kept),
        "kept_share": percent(whole.ms_kept / whole.ms_in),
        "recordings": flow.recordings,
        "losses": [
            {
                "stage": loss.stage,
                "reason": loss.reason,
                "recordings": loss.recordings,
                "time": time(loss.ms),
                "ms": loss.ms,
                "share": loss.ms / whole.ms_in,
                "percent": percent(loss.ms / whole.ms_in),
            }
            for loss in flow.losses
        ],
        "stages": sorted(whole.lost, key=stage_order),
        "parts": [
            (title, [_part_view(name, part, whole, time) for name, part in _listed(parts).items()])
            for title, parts in (("Source", flow.sources), ("Language", flow.langs))
        ],
    }


def _listed(parts: dict[str, Part]) -> dict[str, Part]:
    """The largest parts; the others are added up."""
    names = list(parts)
    shown = {name: parts[name] for name in names[:_LISTED]}
    if len(names) > _LISTED:
        rest = Part()
        for name in names[_LISTED:]:
            rest.ms_in += parts[name].ms_in
            rest.ms_kept += parts[name].ms_kept
            for stage, ms in parts[name].lost.items():
                rest.lost[stage] = rest.lost.get(stage, 0) + ms
        shown[f"{len(names) - _LISTED} others"] = rest
    return shown


def _part_view(name: str, part: Part, whole: Part, time: _Time) -> dict[str, Any]:
    return {
        "name": name,
        "total": time(part.ms_in),
        "kept": time(part.ms_kept),
        "share": percent(part.ms_kept / part.ms_in) if part.ms_in else "",
        "bar": 100 * part.ms_in / whole.ms_in,
        "bar_kept": 100 * part.ms_kept / whole.ms_in,
        "lost": [time(part.lost[stage]) if stage in part.lost else "" for stage in sorted(whole.lost, key=stage_order)],
    }


def _rate_view(rate: StageRate) -> dict[str, Any]:
    def times(value: float | None) -> str:
        return figures.number(value) if value else ""

    return {
        "stage": rate.stage,
        "backend": ", ".join(rate.backends),
        "device": ", ".join(rate.devices),
        "audio": f"{rate.audio_seconds / 3600:,.2f}",
        "worker_hours": f"{rate.wall_seconds / 3600:,.2f}",
        "real_time": times(rate.real_time),
        "real_time_cpu": times(rate.real_time_cpu),
    }


def _missing(report: Report) -> list[str]:
    tables = {
        LEDGER_FILE: report.flow,
        REJECTS_FILE: report.rejections,
        DUPLICATES_FILE: report.duplicates,
        STAGES_FILE: report.rates,
    }
    return [name for name, content in tables.items() if content is None]


def _names(totals: dict[str, dict[str, Any]]) -> str:
    names = sorted(totals, key=lambda name: -totals[name]["frames"])
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shares(totals: dict[str, dict[str, Any]]) -> str:
    whole = sum(entry["frames"] for entry in totals.values())
    entries = sorted(totals.items(), key=lambda item: -item[1]["frames"])[:3]
    return ", ".join(f"{name} {percent(entry['frames'] / whole)}" for name, entry in entries)


def _origin(detected: float) -> str:
    if detected in (0.0, 1.0):
        return "detected" if detected else "as given, not measured"
    return f"detected for {percent(detected)}, else as given"


def _short(value: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            return f"{figures.number(value / (1000 if letter == 'k' else size))} {letter}"
    return f"{value:,}"


def _bytes(size: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{figures.number(size / factor)} {unit}"
    return f"{figures.number(size / 1000)} kB"
