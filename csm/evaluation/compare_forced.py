"""Teacher-forced scores of several runs, paired by conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from csm.evaluation.intrinsic import ConversationSums, codebook_groups
from csm.evaluation.paired import Row, paired_row
from csm.files import read_json_lines

CONVERSATIONS = "conversations.jsonl"
"""File of a report: a line for each conversation that was scored."""

Conversations = Mapping[str, ConversationSums]


def read_conversations(folder: Path) -> dict[str, ConversationSums]:
    """Of a report, by their keys; none if nothing was scored teacher-forced."""
    path = folder / CONVERSATIONS
    if not path.is_file():
        return {}
    sums = [ConversationSums(**record) for _, record in read_json_lines(path)]
    return {one.key: one for one in sums}


def forced_rows(
    scores: Sequence[Mapping[str, Any] | None], runs: Sequence[Conversations]
) -> tuple[list[Row], list[Row], list[str]]:
    """Rows of the loss, its groups and the ends, rows of single codebooks, and reservations.

    scores: the block `teacher_forced` of every run's results
    """
    present = [block is not None and "not_run" not in block for block in scores]
    if not any(present):
        return [], [], []
    if not all(present):
        return [], [], ["Teacher-forced: not all runs have been scored"]
    splits = {(block["fingerprint"], block["split"]) for block in scores if block is not None}
    codebooks = {len(one.nats) for run in runs for one in run.values()}
    if len(splits) > 1 or len(codebooks) != 1:
        return [], [], ["Teacher-forced: the runs were scored on different data"]
    [count] = codebooks

    def same(key: str, one: ConversationSums) -> bool:
        return all(key in run and (run[key].frames, run[key].ends) == (one.frames, one.ends) for run in runs)

    kept = {key: one for key, one in runs[0].items() if same(key, one)}
    if not kept:
        return [], [], ["Teacher-forced: no conversation in common"]
    clusters = {key: one.cluster for key, one in kept.items()}

    def row(name: str, title: str, percent: bool, terms: Callable[[ConversationSums], tuple[float, float]]) -> Row:
        sides = [{key: terms(run[key]) for key in kept} for run in runs]
        found = paired_row(name, title, percent, sides, clusters)
        assert found is not None, "every conversation has frames and an end"
        return found

    def loss(which: slice) -> Callable[[ConversationSums], tuple[float, float]]:
        return lambda one: (sum(one.nats[which]) / len(one.nats[which]), one.frames)

    rows = [row("forced_loss", "Loss, codebook 0 + mean of the others, nats", False, _whole_loss)]
    for name, which in codebook_groups(count).items():
        rows.append(row(f"forced_{name}", f"Loss, {name}, nats", False, loss(which)))
    rows += [
        row("forced_ends", "Ends of turns, cross entropy, nats", False, lambda one: (one.end_nats, one.ends)),
        row("forced_found", "Ends of turns, found", True, lambda one: (one.found, one.ends)),
        row("forced_stops", "False stops", True, lambda one: (one.false_stops, one.frames - one.ends)),
    ]
    single = [row(f"forced_codebook_{k}", f"c{k}", False, loss(slice(k, k + 1))) for k in range(count)]
    for one in single:
        one.p_holm = [None] * len(one.differences)
    total = len(set().union(*runs))
    notes = [f"Teacher-forced: {len(kept)} of {total} conversations are in all runs"] if len(kept) < total else []
    return rows, single, notes


def _whole_loss(one: ConversationSums) -> tuple[float, float]:
    first, *others = one.nats
    return first + sum(others) / len(others), one.frames
