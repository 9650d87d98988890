"""`python evaluate.py listening items | export | import`: a listening test of two systems, and its results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from csm.evaluation.listening.items import RIVALS, items_of_report
from csm.evaluation.listening.kit import export_kit, read_items
from csm.evaluation.listening.results import as_json, as_text, read_results


def main(words: Sequence[str]) -> None:
    """Runs `listening export ...` or `listening import ...`.

    Raises:
        ValueError: items, key or answers are not as they have to be; the message says where.
    """
    parser = argparse.ArgumentParser(
        prog="python evaluate.py listening",
        description="A listening test (CMOS): the page for raters, and its results.",
    )
    parts = parser.add_subparsers(dest="part", required=True)

    report = parts.add_parser("items", help="items of a report: its recordings against the model's speech")
    report.add_argument("report", type=Path, help="folder of an evaluation")
    report.add_argument("output", type=Path, help="JSONL file to write, for export")
    report.add_argument("--against", choices=RIVALS, default="ground_truth", help="default: ground_truth")
    report.add_argument("--seed", type=int, help="of the model's speech (default: the evaluation's first)")
    report.set_defaults(run=_items)

    kit = parts.add_parser("export", help="write the page, its audio, and the key")
    kit.add_argument(
        "items", type=Path, help='JSONL: {"id", "systems": {"NAME": "a.wav", "OTHER": "b.wav"}, "context"}'
    )
    kit.add_argument("output", type=Path, help="new folder: kit/ is for the raters, key.json is not")
    kit.add_argument("--first", required=True, help="system whose advantage positive scores mean")
    kit.add_argument("--raters", type=int, required=True, help="number of raters")
    kit.add_argument("--trials", type=int, default=15, help="items that each rater hears (default: 15)")
    kit.add_argument("--seed", type=int, default=0, help="of sides, order and catch trials (default: 0)")
    kit.set_defaults(run=_export)

    results = parts.add_parser("import", help="means, intervals, tests and agreement from the raters' files")
    results.add_argument("key", type=Path, help="the kit's key.json")
    results.add_argument("answers", type=Path, nargs="+", help="files that raters sent")
    results.add_argument("--json", type=Path, help="write the results to this file, too")
    results.set_defaults(run=_import)
    arguments = parser.parse_args(words)
    arguments.run(arguments)


def _items(arguments: argparse.Namespace) -> None:
    count, lacking = items_of_report(arguments.report, arguments.output, arguments.against, arguments.seed)
    print(f"{arguments.output}: {count} items, of {arguments.against} and model")
    if lacking:
        print(f"{len(lacking)} prompts lack audio of one of them and cannot be heard, e.g. {lacking[0]}")


def _export(arguments: argparse.Namespace) -> None:
    items = read_items(arguments.items)
    export_kit(
        items,
        arguments.output,
        first=arguments.first,
        raters=arguments.raters,
        trials=arguments.trials,
        seed=arguments.seed,
    )
    print(
        f"{arguments.output / 'kit'}: give it to {arguments.raters} raters, each with a number (index.html?rater=1)\n"
        f"{arguments.output / 'key.json'}: keep it; `listening import` reads it with their answers"
    )


def _import(arguments: argparse.Namespace) -> None:
    results = read_results(arguments.key, arguments.answers)
    print(as_text(results))
    if arguments.json:
        text = json.dumps(as_json(results), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
