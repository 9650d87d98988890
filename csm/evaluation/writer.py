"""Writes the report of an evaluation: results.json, utterances.jsonl, report.md and report.html, beside the audio, and
conversations.jsonl where conversations were scored teacher-forced.

report.html is for people: one file that works from disk, with players. The templates escape every text, since
transcripts are not trusted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from csm.evaluation.compare_forced import CONVERSATIONS
from csm.evaluation.report import Report, results, rows
from csm.evaluation.views import page_view
from csm.files import write_atomically


def write_report(report: Report, folder: Path) -> None:
    """Writes into an existing folder that holds the audio. results.json is written last; an old one goes first."""
    (folder / "results.json").unlink(missing_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(report)]
    write_text(folder / "utterances.jsonl", "".join(lines))
    if sums := (report.teacher_forced or {}).get("sums"):
        write_text(folder / CONVERSATIONS, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sums))
    view = page_view(report, folder)
    for name in ("report.html", "report.md"):
        write_text(folder / name, templates().get_template(f"{name}.j2").render(view))
    write_text(folder / "results.json", json.dumps(results(report), indent=2, ensure_ascii=False) + "\n")


def templates() -> jinja2.Environment:
    """The environment of this package's templates; HTML is escaped, Markdown has the filter `cell`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csm.evaluation", "templates"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown_text
    return environment


def write_text(path: Path, text: str) -> None:
    """Replaces a text file at once."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _markdown_text(value: Any) -> str:
    """Text that neither breaks a Markdown table nor becomes markup."""
    text = " ".join(str(value).split())
    for character in "\\`*[]|":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
