"""A dataset's report: `report.html` for people deciding whether to train on it, `report.json` with every number of it.

The page is one file that works from disk. Its template escapes every text, since transcripts are not ours.

    report_tables.py    ledger, rejects, duplicates and stage times, in sums
    report_data.py      index, turns, positions, codes
    report_checks.py    rules of thumb, applied
    report_samples.py   random conversations with their speech
    report_figures.py   bars
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from csm.data.dataset import DatasetInfo, ShardedDataset, is_remote
from csm.files import write_atomically
from data_prep import report_figures as figures
from data_prep.report_checks import Check, check_dataset, percent
from data_prep.report_data import (
    MAX_CONVERSATIONS,
    NARROW_BAND,
    ROW_POSITIONS,
    TURNS_FILE,
    Codebooks,
    Columns,
    Contents,
    Distribution,
    Packing,
    TurnMeasures,
    choose,
    distribution,
    measure_codebooks,
    measure_packing,
    measure_turns,
    read_index,
)
from data_prep.report_samples import CONVERSATIONS, find_voice, listen, view
from data_prep.report_tables import (
    DUPLICATES_FILE,
    LEDGER_FILE,
    REJECTS_FILE,
    STAGES_FILE,
    Duplicates,
    Flow,
    Part,
    RejectGroup,
    StageRate,
    read_duplicates,
    read_flow,
    read_rates,
    read_rejects,
    stage_order,
)

REPORT_FILE = "report.html"
JSON_FILE = "report.json"
SCHEMA_VERSION = 1
LISTED = 12  # sources and languages with a row of their own


@dataclass
class Report:
    """All that the page says, but for the speech. `flow`, `rejects`, `duplicates` and `rates` are None where the
    dataset has no such table."""

    info: DatasetInfo
    seed: int
    flow: Flow | None
    rejects: list[RejectGroup] | None
    duplicates: Duplicates | None
    rates: list[StageRate] | None
    contents: Contents
    packing: Packing
    turns: TurnMeasures
    codebooks: Codebooks
    distributions: dict[str, Distribution]
    checks: list[Check]
    heard: list[str]  # keys of the conversations to listen to
    heard_as: str


def write_report(path: str | Path, seed: int = 1234) -> Path:
    """Writes report.html, report.json and report_turns.parquet into the dataset `path`; returns report.html's path.

    seed: draws what is looked at and what is listened to; equal seeds give equal reports.

    Raises:
        FileNotFoundError: no dataset is there, or a file it names is missing.
        ValueError: it is remote, or one of its files is damaged.
    """
    if is_remote(path):
        raise ValueError(f"{path}: report reads local folders; run it where the dataset is stored")
    dataset = ShardedDataset(path)
    rng = np.random.default_rng(seed)
    contents, columns = read_index(dataset)
    packing, positions = measure_packing(dataset, columns, seed)
    numbers = choose(len(dataset), MAX_CONVERSATIONS, rng)
    turns = measure_turns(dataset, numbers)
    codebooks = measure_codebooks(dataset, numbers, rng)
    flow, rejects = read_flow(dataset.path), read_rejects(dataset.path)
    voice, heard_as = find_voice(dataset)
    heard = listen(dataset, rng.permutation(choose(len(dataset), CONVERSATIONS, rng)), voice)
    report = Report(
        info=dataset.info,
        seed=seed,
        flow=flow,
        rejects=rejects,
        duplicates=read_duplicates(dataset.path),
        rates=read_rates(dataset.path),
        contents=contents,
        packing=packing,
        turns=turns,
        codebooks=codebooks,
        distributions=_distributions(columns, positions, packing, turns),
        checks=check_dataset(flow, rejects, contents, packing, turns, codebooks),
        heard=[entry.sample.key for entry in heard],
        heard_as=heard_as,
    )
    text = json.dumps(_numbers(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(dataset.path / JSON_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_prep", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("data_report.html.j2").render(_view(report), heard=[view(entry) for entry in heard])
    html = dataset.path / REPORT_FILE
    write_atomically(html, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return html


def _distributions(
    columns: Columns, positions: np.ndarray, packing: Packing, turns: TurnMeasures
) -> dict[str, Distribution]:
    """By name; those with no values are left out."""
    of_turns, found = turns.columns, "turns"
    exact = "counted" if packing.exact else "estimated"
    made = {
        "turn_seconds": distribution("Turn length", "s", found, of_turns["seconds"], np.arange(0.0, 31)),
        "gap_seconds": distribution(
            "Gap before a turn (negative: it begins early)", "s", found, of_turns["gap"], np.arange(-3, 8.1, 0.25)
        ),
        "overlap": distribution(
            "Share of a turn that someone talks over", "", found, of_turns["overlap"], np.linspace(0, 1, 21)
        ),
        "chars_per_second": distribution(
            "Characters per second", "/s", found, of_turns["chars_per_second"], np.arange(0.0, 41)
        ),
        "ovrl": distribution("DNSMOS OVRL", "", found, of_turns["ovrl"], np.arange(1, 5.01, 0.1)),
        "lufs": distribution("Loudness", "LUFS", found, of_turns["lufs"], np.arange(-60.0, 1, 2)),
        "bandwidth": distribution("Bandwidth", "Hz", found, of_turns["bandwidth"], np.arange(0.0, 24_001, 500)),
        "turns": distribution("Turns of a conversation", "", "conversations", columns.turns, np.arange(0.5, 65)),
        "speakers": distribution("Speakers of a conversation", "", "conversations", columns.speakers, np.arange(0.5, 9)),
        "positions": distribution(
            f"Positions of a conversation ({exact})", "", "conversations", positions,
            np.arange(0.0, 1.5 * ROW_POSITIONS + 1, ROW_POSITIONS / 16),
        ),
    }  # fmt: skip
    return {name: measure for name, measure in made.items() if measure is not None}


def _numbers(report: Report) -> dict[str, Any]:
    """report.json."""
    info = report.info

    def optional(entries: list[Any] | None) -> list[dict[str, Any]] | None:
        return None if entries is None else [asdict(entry) for entry in entries]

    return {
        "schema": SCHEMA_VERSION,
        "dataset": {
            "source": info.source,
            "fingerprint": info.fingerprint,
            "codec": info.codec.to_dict(),
            "shards": len(info.shards),
            "bytes": sum(shard.size for shard in info.shards),
            "taken_down": info.takedown is not None,
        },
        "seed": report.seed,
        "contents": asdict(report.contents),
        "flow": report.flow and asdict(report.flow),
        "rejects": optional(report.rejects),
        "duplicates": report.duplicates and asdict(report.duplicates),
        "stages": report.rates
        and [
            asdict(rate) | {"real_time": rate.real_time, "real_time_cpu": rate.real_time_cpu} for rate in report.rates
        ],
        "packing": asdict(report.packing) | {"row_positions": ROW_POSITIONS},
        "turns_looked_at": {
            "conversations": report.turns.conversations,
            "turns": len(report.turns.columns["seconds"]),
            "backchannels": report.turns.events,
            "narrow_band": NARROW_BAND,
            "narrow_share": report.turns.narrow_share,
        },
        "codebooks": asdict(report.codebooks),
        "distributions": {name: asdict(measure) for name, measure in report.distributions.items()},
        "checks": optional(report.checks),
        "listened_to": {"keys": report.heard, "speech": report.heard_as},
    }


# ---------------------------------------------------------------------------------------------------- the page


class _Time:
    """Track time in one unit over the whole page, so that columns can be compared and added."""

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
            ("Speakers", f"{contents.speakers:,}", "counted in each recording by itself"),
            (
                "Positions",
                _short(report.packing.positions),
                "counted by a tokenizer" if report.packing.exact else "estimated, no tokenizer yet",
            ),
            (
                "Padding",
                percent(1 - report.packing.efficiency),
                f"of rows of {ROW_POSITIONS} positions",
            ),
            ("Languages", _names(info.langs), _shares(info.langs)),
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
        "looked_at": f"{report.turns.conversations:,} of {contents.conversations:,} conversations",
        "turns_file": TURNS_FILE,
        "codebooks": report.codebooks,
        "codebook_plots": {what: figures.levels(report.codebooks, what) for what in ("used", "perplexity")},
        "code_hours": f"{report.codebooks.frames / info.codec.frame_rate / 3600:,.2f}",
        "packing": report.packing,
        "efficiency": percent(report.packing.efficiency),
        "row_positions": ROW_POSITIONS,
        "rejects": report.rejects,
        "duplicates": report.duplicates,
        "rates": report.rates and [_rate_view(rate) for rate in report.rates],
        "heard_as": report.heard_as,
        "missing": _missing(report),
        "json_file": JSON_FILE,
        "seed": report.seed,
    }


_MARKS = {"positions": float(ROW_POSITIONS), "bandwidth": NARROW_BAND}


def _plot_view(name: str, measure: Distribution, figure: str) -> dict[str, Any]:
    middle, low, high = (figures.number(measure.quantiles[p]) for p in ("p50", "p5", "p95"))
    notes = {"overlap": "overlap of turns on one track; two-channel calls have none"}
    return {
        "title": measure.name,
        "median": f"{middle} {measure.unit}".strip(),
        "range": f"{low} to {high}",
        "of": f"{measure.count:,} {measure.of}",
        "note": notes.get(name, ""),
        "figure": figure,
    }


def _strip(flow: Flow, time: _Time) -> list[dict[str, Any]]:
    """Parts of one bar: what is kept, then what is lost, by stage."""
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
        text = f"−{time(ms)} {time.unit}, {percent(ms / whole.ms_in)}"
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
    """The largest; the others as one."""
    names = list(parts)
    shown = {name: parts[name] for name in names[:LISTED]}
    if len(names) > LISTED:
        rest = Part()
        for name in names[LISTED:]:
            rest.ms_in += parts[name].ms_in
            rest.ms_kept += parts[name].ms_kept
            for stage, ms in parts[name].lost.items():
                rest.lost[stage] = rest.lost.get(stage, 0) + ms
        shown[f"{len(names) - LISTED} others"] = rest
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
        return f"{figures.number(value)} ×" if value else "–"

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
        REJECTS_FILE: report.rejects,
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
