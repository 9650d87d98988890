"""`python evaluate.py index FOLDER`: a page that links the reports in a folder, such as those of one checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from csm.evaluation.report import SCHEMA_VERSION
from csm.evaluation.writer import templates, write_text

HEADLINE = 4
"""Metrics of each report, the first of its suite."""


@dataclass(frozen=True)
class Entry:
    """A report. link: to its page, relative to the index; numbers: of the model, as text, by title; failed: share
    of its utterances, for each condition."""

    link: str
    title: str
    suite: str
    scoring: str
    numbers: list[tuple[str, str]]
    failed: str
    finished: str


def main(words: Sequence[str]) -> None:
    """The command. Raises FileNotFoundError if a folder holds no report."""
    parser = argparse.ArgumentParser(prog="evaluate.py index", description="A page that links evaluation reports.")
    parser.add_argument("folder", type=Path, help="folder of report folders, such as runs/a; gets index.html")
    folder: Path = parser.parse_args(words).folder
    entries = [entry(path, folder) for path in sorted(folder.glob("**/results.json"))]
    found = [one for one in entries if one is not None]
    if not found:
        raise FileNotFoundError(f"{folder}: no evaluation report of this version is in it or below it")
    page = templates().get_template("index.html.j2").render(name=folder.resolve().name, entries=found)
    write_text(folder / "index.html", page)
    Console().print(f"{len(found)} reports: {folder / 'index.html'}", soft_wrap=True)


def entry(path: Path, folder: Path) -> Entry | None:
    """The report whose results.json is `path`; None for another file of that name, or another version's."""
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or results.get("schema") != SCHEMA_VERSION or "systems" not in results:
        return None
    systems = {name: row for name, row in results["systems"].items() if name.split("/")[0] == "model"}
    numbers = []
    for name, row in systems.items():
        for metric_name, metric in list(results["metrics"].items())[:HEADLINE]:
            title = ", ".join([metric["short"], *name.split("/")[1:]])
            numbers.append((title, _number(row["metrics"][metric_name], metric["percent"])))
    forced = results["teacher_forced"]
    if forced is not None and "not_run" not in forced:
        numbers.append(("teacher-forced loss, nats", _number(forced["loss"], percent=False)))
    return Entry(
        link=quote(path.parent.relative_to(folder).joinpath("report.html").as_posix()),
        title=results["title"],
        suite=results["suite"],
        scoring=results["scoring"],
        numbers=numbers,
        failed=", ".join(_number(row["metrics"]["failed"], percent=True) + " %" for row in systems.values()),
        finished=str(results["timings"].get("finished", "")),
    )


def _number(score: dict[str, Any], percent: bool) -> str:
    if "not_run" in score:
        return "not run"
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * score['value']:.{digits}f}"
    if score["low"] is None:
        return text
    return f"{text} [{scale * score['low']:.{digits}f}, {scale * score['high']:.{digits}f}]"
