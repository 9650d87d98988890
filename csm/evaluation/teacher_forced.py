"""Teacher-forced scores in a report: their computation, once for a model and a split, and the tables that show them.

The scores are those of csm/evaluation/intrinsic.py and csm/evaluation/context_gain.py as plain values, as they stand in
results.json and in the report's stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from csm.codec.base import check_same_codec
from csm.config import EvalConfig
from csm.data.dataset import ShardedDataset
from csm.evaluation.context_gain import Context, context_gain, context_items
from csm.evaluation.intrinsic import codebook_groups, intrinsic_scores
from csm.evaluation.store import Store, key_of
from csm.evaluation.suites.suite import open_dataset
from csm.evaluation.tables import ScoreTable, Value, with_interval
from csm.formats.layouts import Checkpoint
from csm.inference.generator import Generator

VERSION = 2
"""Of the scores that are kept; earlier ones are made again."""
MOST_TURNS = 12
"""Rows of the table by turn; results.json has them all."""


def teacher_forced(
    generator: Generator, checkpoint: Checkpoint, settings: EvalConfig, weights: str, store: Store
) -> dict[str, Any]:
    """Scores of every frame of `eval.intrinsic_split`, taken from the store if they are there; or why there are none.

    weights: hash of the model's
    """
    split = settings.intrinsic_split
    assert split is not None, "asked for only where there is one"
    try:
        dataset = open_dataset(settings, checkpoint, split)
        check_same_codec(dataset.codec, generator.codec.info, f"dataset {dataset.path} and checkpoint")
        return _scores(generator, dataset, split, settings.bootstrap_samples, weights, store)
    except (FileNotFoundError, ValueError) as error:  # such as a split without frames: speech has been scored by now
        return {"not_run": str(error)}


def _scores(
    generator: Generator, dataset: ShardedDataset, split: str, bootstrap_samples: int, weights: str, store: Store
) -> dict[str, Any]:
    model = generator.model
    parameter = next(model.parameters())
    log = store.log("intrinsic")
    key = key_of(
        version=VERSION,
        weights=weights,
        tokenizer=generator.tokenizer.identity,
        dtype=str(parameter.dtype),
        device=parameter.device.type,
        dataset=dataset.info.fingerprint,
        split=split,
        bootstrap_samples=bootstrap_samples,
    )
    if key not in log:
        scores = intrinsic_scores(model, dataset, split, generator.tokenizer, bootstrap_samples)
        gain = _context_gain(generator, dataset, split, bootstrap_samples)
        log.add(key, **asdict(scores), context_gain=gain)
    facts = {"dataset": str(dataset.path), "fingerprint": dataset.info.fingerprint, "split": split}
    return facts | log[key]


def _context_gain(generator: Generator, dataset: ShardedDataset, split: str, bootstrap_samples: int) -> dict[str, Any]:
    """By control and measure; or why there is none."""
    model = generator.model
    try:
        items = context_items(model, dataset, split, generator.tokenizer)
    except ValueError as error:
        return {"not_run": str(error)}
    measures = ["loss", *codebook_groups(model.config.num_codebooks)]
    return {
        control.name: {name: asdict(context_gain(items, control, name, bootstrap_samples)) for name in measures}
        for control in Context
        if control is not Context.true
    }


# ---------------------------------------------------------------------------------------------------------- tables


def score_tables(scores: Mapping[str, Any]) -> list[ScoreTable]:
    """Everything of `teacher_forced`, for the report."""
    tables = [
        ScoreTable(
            "Loss",
            ["nats", "top-1 %", "top-5 %"],
            [("codebook 0 + mean of the others", [with_interval(scores["loss"]), "", ""])]
            + [(name, _codebook(group)) for name, group in scores["groups"].items()],
        ),
        ScoreTable(
            "By codebook",
            ["nats", "top-1 %", "top-5 %"],
            [(f"c{number}", _codebook(one)) for number, one in enumerate(scores["codebooks"])],
            long=True,
        ),
        _ends(scores["ends"]),
        _gains(scores["context_gain"]),
    ]
    turns = dict(list(scores["turns"].items())[:MOST_TURNS])
    parts = (("Loss by frame of the turn", scores["positions"]), ("Loss by turn", turns))
    for title, values in (*parts, ("Loss by speaker id", scores["speakers"])):
        rows = [(name, [with_interval(value), str(value["items"])]) for name, value in values.items()]
        tables.append(ScoreTable(title, ["nats", "frames"], rows, long=True))
    return tables


def _codebook(scores: Mapping[str, Value]) -> list[str]:
    return [with_interval(scores["nats"]), with_interval(scores["top1"], 100), with_interval(scores["top5"], 100)]


def _ends(ends: Mapping[str, Any]) -> ScoreTable:
    auc, stops = ends["auc"], ends["false_stops"]
    rows = [
        ("cross entropy of the end's frame, nats", [with_interval(ends["nats"])]),
        ("AUC of its probability against other frames", ["none" if auc is None else f"{auc:.4f}"]),
        ("ends at which greedy decoding stops, %", [with_interval(ends["found"], 100)]),
        ("other frames at which it would, %", ["none" if stops is None else with_interval(stops, 100)]),
    ]
    return ScoreTable("Ends of turns", [f"of {ends['nats']['items']} ends"], rows)


def _gains(gains: Mapping[str, Any]) -> ScoreTable:
    title = "Gain from context: nats a frame that the true context of a conversation's last turn saves"
    if "not_run" in gains:
        return ScoreTable(title, [""], [("not run", [gains["not_run"]])])
    rows = [
        (f"against {Context[name].value}", [with_interval(value) for value in measures.values()])
        for name, measures in gains.items()
    ]
    return ScoreTable(title, list(next(iter(gains.values()))), rows)
