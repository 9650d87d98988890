"""`python evaluate.py compare RUN_A RUN_B ...`: several reports in one, with paired statistics.

Runs are compared with the first on the items that all have, by the terms of each metric that a report keeps for every
utterance, and by the sums of teacher-forced losses that it keeps for every conversation. That means something only
where everything but the model is equal: different protocol hashes are refused, with the differences, unless the user
insists.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from csm.evaluation.compare_forced import forced_rows, read_conversations
from csm.evaluation.intrinsic import ConversationSums
from csm.evaluation.paired import Row, paired_row
from csm.evaluation.plots import RUN_COLORS, losses_of_runs
from csm.evaluation.report import SCHEMA_VERSION
from csm.evaluation.statistics import holm
from csm.evaluation.writer import templates, write_text
from csm.files import read_json_lines

Item = tuple[str, int | None]
"""Id of a prompt, and the seed."""


@dataclass
class Run:
    """A report that is compared. terms: of the model's utterances, by metric."""

    name: str
    folder: Path
    results: dict[str, Any]
    clusters: dict[str, str]
    terms: dict[str, dict[Item, tuple[float, float]]]
    conversations: dict[str, ConversationSums]


@dataclass
class Comparison:
    """rows: tested ones; codebooks: teacher-forced losses of single codebooks, not tested; notes: reservations."""

    rows: list[Row]
    codebooks: list[Row]
    notes: list[str]


def main(words: Sequence[str]) -> None:
    """The command. Raises ValueError or FileNotFoundError, with what to do, for runs that cannot be compared."""
    parser = argparse.ArgumentParser(prog="evaluate.py compare", description="Compares reports of evaluations.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="report folders; the first is the baseline")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of the result (%(default)s)")
    parser.add_argument(
        "--allow-different-protocols", action="store_true", help="compare although prompts, judges or sampling differ"
    )
    options = parser.parse_args(words)
    runs = [read_run(folder) for folder in options.runs]
    if len(runs) < 2:
        raise ValueError("compare needs two or more report folders")
    differences = protocol_differences(runs)
    if differences and not options.allow_different_protocols:
        raise ValueError(
            "the runs have different protocols, so their numbers do not compare: "
            + "; ".join(differences)
            + ". --allow-different-protocols compares them nevertheless"
        )
    comparison = compare_runs(runs)
    print_comparison(runs, comparison, options.output)
    comparison.notes = [*(f"different protocols: {line}" for line in differences), *comparison.notes]
    write_comparison(runs, comparison, options.output)


def read_run(folder: Path) -> Run:
    """Raises FileNotFoundError or ValueError if there is no report of this version in `folder`."""
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no evaluation report (results.json is missing)")
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: a report of schema {results.get('schema')}, expected {SCHEMA_VERSION}; evaluate the model again"
        )
    clusters: dict[str, str] = {}
    terms: dict[str, dict[Item, tuple[float, float]]] = defaultdict(dict)
    for _, row in read_json_lines(folder / "utterances.jsonl"):
        if row["system"] == "model":
            clusters[row["prompt"]] = row["cluster"]
            for name, (numerator, denominator) in row["terms"].items():
                terms[name][row["prompt"], row["seed"]] = numerator, denominator
    checkpoint = results["provenance"]["checkpoint"]
    name = checkpoint.get("training", {}).get("name") or Path(checkpoint["path"]).name
    return Run(name, folder, results, clusters, terms, read_conversations(folder))


def protocol_differences(runs: Sequence[Run]) -> list[str]:
    """Where the protocols of runs differ from the first's, as `name: value against value`."""
    first = dict(_flat(runs[0].results["protocol"]))
    found = []
    for run in runs[1:]:
        other = dict(_flat(run.results["protocol"]))
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                found.append(f"{name}: {first.get(name, 'absent')} against {other.get(name, 'absent')} ({run.folder})")
    return list(dict.fromkeys(found))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """A row for each metric that all runs have, and reservations.

    Raises:
        ValueError: the runs have no item in common.
    """
    rows, notes = [], []
    for name, metric in runs[0].results["metrics"].items():
        terms = [run.terms.get(name, {}) for run in runs]
        title = f"{metric['title']} ({metric['detail']})"
        clusters = {item: runs[0].clusters[item[0]] for item in terms[0]}
        row = paired_row(
            name, f"{metric['title']}, {metric['detail']}", metric["percent"], terms, clusters, metric["pool"]
        )
        if row is None:
            notes.append(f"{title}: no item in common")
            continue
        total = len(set().union(*terms))
        if row.items < total:
            notes.append(f"{title}: {row.items} of {total} items are in all runs")
        rows.append(row)
    forced, codebooks, reservations = forced_rows(
        [run.results["teacher_forced"] for run in runs], [run.conversations for run in runs]
    )
    rows += forced
    notes += reservations
    if not rows:
        raise ValueError("the runs have no item of any metric in common; were they made of the same prompts?")
    tests = [difference.p for row in rows for difference in row.differences if difference.p is not None]
    adjusted = iter(holm(tests))
    for row in rows:
        row.p_holm = [None if difference.p is None else next(adjusted) for difference in row.differences]
    if not tests:
        notes.append("All items are of one cluster: there are neither intervals nor tests.")
    return Comparison(rows, codebooks, notes)


def write_comparison(runs: Sequence[Run], comparison: Comparison, output: Path) -> None:
    """compare.json, compare.md and compare.html in the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    hashes = [run.results["protocol_hash"] for run in runs]
    view = {
        "runs": [
            {"name": run.name, "folder": str(run.folder), "protocol_hash": run.results["protocol_hash"]} for run in runs
        ],
        "suite": runs[0].results["suite"],
        "same_protocol": len(set(hashes)) == 1,
        "rows": [_row_view(row) for row in comparison.rows],
        "codebooks": [_row_view(row) for row in comparison.codebooks],
        "plot": losses_of_runs([[row.estimates[i] for row in comparison.codebooks] for i in range(len(runs))]),
        "run_colors": RUN_COLORS,
        "notes": comparison.notes,
    }
    for name in ("compare.html", "compare.md"):
        write_text(output / name, templates().get_template(f"{name}.j2").render(view))
    content = {
        "schema": SCHEMA_VERSION,
        "runs": view["runs"],
        "suite": view["suite"],
        "same_protocol": view["same_protocol"],
        "rows": [asdict(row) for row in comparison.rows],
        "codebooks": [asdict(row) for row in comparison.codebooks],
        "notes": comparison.notes,
    }
    write_text(output / "compare.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _row_view(row: Row) -> dict[str, Any]:
    scale, digits = (100, 2) if row.percent else (1, 3)

    def number(value: float, sign: str = "") -> str:
        return f"{scale * value:{sign}.{digits}f}"

    def interval(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None or high is None else f"[{number(low, sign)}, {number(high, sign)}]"

    return {
        "title": row.title + (" (%)" if row.percent else ""),
        "items": row.items,
        "clusters": row.estimates[0].clusters,
        "values": [(number(e.value), interval(e.low, e.high)) for e in row.estimates],
        "differences": [
            (
                number(difference.value, "+"),
                interval(difference.low, difference.high, "+"),
                "no test" if p is None else f"p {p:.3f}" if p >= 0.001 else "p < 0.001",
                p is not None and p < 0.05,
            )
            for difference, p in zip(row.differences, row.p_holm, strict=True)
        ],
    }


def print_comparison(runs: Sequence[Run], comparison: Comparison, output: Path) -> None:
    """The table in the terminal."""
    table = Table("", box=SIMPLE_HEAD, pad_edge=False)
    for run in runs:
        table.add_column(run.name)
    for run in runs[1:]:
        table.add_column(f"{run.name} - {runs[0].name}")
    for view in map(_row_view, comparison.rows):
        values = ["\n".join(pair) for pair in view["values"]]
        table.add_row(view["title"], *values, *("\n".join(cells[:3]) for cells in view["differences"]))
    console = Console()
    console.print(table)
    console.print("95 % intervals; p of exchanging the runs within clusters, adjusted for their number (Holm)")
    for note in comparison.notes:
        console.print(f"- {note}", markup=False)
    console.print(f"Comparison: {output / 'compare.html'}", soft_wrap=True)
