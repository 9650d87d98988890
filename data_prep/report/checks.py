"""Rules of thumb for a dataset: the measure that each compares, its limit, and the warning if it is broken.

A broken rule deserves a look before GPU time is spent; none of them is strict. A rule whose measure is not known is
listed as not checked.
"""

from __future__ import annotations

import numpy as np

from data_prep.execution.unit_files import TRANSIENT_REASONS
from data_prep.report.checks_of_turns import checks_of_turns
from data_prep.report.data import ROW_POSITIONS, Codebooks, Contents, RowFill
from data_prep.report.rules import Check, limit, percent, share_check
from data_prep.report.tables import Flow, RejectionGroup
from data_prep.report.texts import ComparedTexts
from data_prep.report.turns import TurnMeasures

MAX_FAILED = 0.05
MIN_KEPT = 1 / 3
MIN_ENTRIES_USED = 0.10
MIN_FRAMES_PER_ENTRY = 5
"""Frames read per codebook entry, below which unused entries are not significant."""
MAX_GROUP = 0.20
MAX_ONE_SPEAKER = 0.50
MAX_CONTEXT = 0.25
MAX_SHORTENED = 0.01
MIN_EFFICIENCY = 0.90
MIN_ROWS = 20  # per window
MAX_UNKNOWN_LICENCE = 0.0
MAX_LOST_WHOLE = 0.10


def check_dataset(
    flow: Flow | None,
    rejections: list[RejectionGroup] | None,
    contents: Contents,
    fill: RowFill,
    turns: TurnMeasures,
    codebooks: Codebooks,
    texts: ComparedTexts | None,
) -> list[Check]:
    return [
        _failures(flow, rejections),
        _kept(flow),
        _lost_whole(flow, contents),
        _validation(contents),
        _leak(contents),
        _largest_group(contents),
        _monologues(contents),
        *checks_of_turns(turns, texts),
        _context(contents),
        _too_long(fill, contents),
        _padding(fill),
        _codebook_use(codebooks),
        _licences(contents),
    ]


def _failures(flow: Flow | None, rejections: list[RejectionGroup] | None) -> Check:
    """By hours or by recordings, whichever share is larger: a few long recordings can be many hours."""
    share = None
    if flow is not None:
        failed = sum(loss.ms for loss in flow.losses if loss.reason in TRANSIENT_REASONS)
        share = failed / flow.whole.ms_in if flow.whole.ms_in else 0.0
        if rejections is not None and flow.recordings:
            count = sum(group.recordings for group in rejections if group.reason in TRANSIENT_REASONS)
            share = max(share, count / flow.recordings)
    return share_check(
        f"At most {limit(MAX_FAILED)} of the recordings, or of their hours, failed, crashed, timed out or changed",
        share,
        lambda value: value > MAX_FAILED,
        "of the recordings, or of their hours, failed",
        "The cause is probably the run and not the recordings: see the messages below, fix the cause, then run "
        "python -m data_prep retry, run and pack.",
    )


def _kept(flow: Flow | None) -> Check:
    share = flow.whole.ms_kept / flow.whole.ms_in if flow is not None and flow.whole.ms_in else None
    largest = max(flow.losses, key=lambda loss: loss.ms, default=None) if flow is not None else None
    name = f"{largest.stage}: {largest.reason.replace('_', ' ')}" if largest else ""
    return share_check(
        f"At least {limit(MIN_KEPT)} of the hours are kept",
        share,
        lambda value: value < MIN_KEPT,
        "of the hours are kept",
        f"The largest loss is {name}. See whether its limit suits these recordings; the limits of pack change without "
        "encoding again.",
    )


def _lost_whole(flow: Flow | None, contents: Contents) -> Check:
    return share_check(
        f"At most {limit(MAX_LOST_WHOLE)} of the recordings are lost whole",
        1 - contents.recordings / flow.recordings if flow is not None and flow.recordings else None,
        lambda value: value > MAX_LOST_WHOLE,
        "of the recordings have no turn in the dataset",
        "Their reasons are among the losses below. If a limit rejects whole recordings (clipping, confidence in a "
        "language that the recognizer does not know), see whether it suits them.",
    )


def _validation(contents: Contents) -> Check:
    val = contents.splits.get("val")
    found = f"{val['hours']:.2f} hours in {val['samples']} conversations" if val else "There is no validation split"
    return Check(
        "There is a validation split",
        found,
        val is None,
        "Overfitting will go unnoticed. Use some groups for validation: pack.val_fraction=0.01.",
    )


def _leak(contents: Contents) -> Check:
    if "val" not in contents.splits or "train" not in contents.splits:
        return Check("Training and validation share no group (show, caller)", "one split only", None, "")
    count = contents.groups_on_both_sides
    return Check(
        "Training and validation share no group (show, caller)",
        f"{count} of {contents.groups} groups are in both splits",
        count > 0,
        "Validation contains voices of the training set, so its loss is too low. Give such recordings one split.",
    )


def _largest_group(contents: Contents) -> Check:
    share = contents.largest_group_frames / contents.frames
    return share_check(
        f"No group (show, caller) has more than {limit(MAX_GROUP)} of the speech",
        share,
        lambda value: value > MAX_GROUP,
        f"of the speech is of the largest of {contents.groups} groups, “{contents.largest_group}”",
        "The model will be biased towards its voices and style. If this group is not a single show, the recordings "
        "have no groups of their own: set the source's group_pattern, or group in the manifest.",
    )


def _monologues(contents: Contents) -> Check:
    return share_check(
        f"At most {limit(MAX_ONE_SPEAKER)} of the conversations have one speaker only",
        contents.one_speaker / contents.conversations,
        lambda value: value > MAX_ONE_SPEAKER,
        "of the conversations have one speaker only",
        "There is little turn-taking to learn from. If the recordings have several speakers, listen below to check "
        "that diarization tells them apart.",
    )


def _context(contents: Contents) -> Check:
    return share_check(
        f"At most {limit(MAX_CONTEXT)} of the speech is context only (never predicted)",
        1 - contents.loss_frames / contents.frames,
        lambda value: value > MAX_CONTEXT,
        "of the speech is context only",
        "It costs compute without being trained on. See conversation.context_overlap and context_ovrl.",
    )


def _too_long(fill: RowFill, contents: Contents) -> Check:
    total = contents.splits[fill.split]["samples"]
    return share_check(
        f"At most {limit(MAX_SHORTENED)} of the conversations are longer than a row of {ROW_POSITIONS} positions",
        (fill.shortened + fill.left_out) / total,
        lambda value: value > MAX_SHORTENED,
        f"of the conversations are longer than a row ({fill.shortened} lose turns, {fill.left_out} are dropped)",
        "Training drops the turns that do not fit. Prepare with a lower conversation.max_seq_len or max_seconds.",
    )


def _padding(fill: RowFill) -> Check:
    rule = f"At least {limit(MIN_EFFICIENCY)} of the positions of packed rows are filled"
    if fill.rows < MIN_ROWS * fill.windows:  # the last row of each window, filled by chance, would weigh too much
        return Check(rule, f"{fill.rows} rows in {fill.windows} windows are too few to tell", None, "")
    return share_check(
        rule,
        fill.efficiency,
        lambda value: value < MIN_EFFICIENCY,
        "of the positions of packed rows are filled",
        "The rest is padding, which wastes compute: conversations of just over half a row pack badly. See "
        "conversation.max_seq_len and max_seconds.",
    )


def _codebook_use(codebooks: Codebooks) -> Check:
    rule = f"Every codebook has at least {limit(MIN_ENTRIES_USED)} of its entries in use"
    if codebooks.frames < MIN_FRAMES_PER_ENTRY * codebooks.size:
        return Check(rule, f"too few frames to tell ({codebooks.frames} for {codebooks.size} entries)", None, "")
    shares = [level.used / codebooks.size for level in codebooks.levels]
    poor = [number for number, share in enumerate(shares) if share < MIN_ENTRIES_USED]
    found = f"{percent(min(shares))} of the entries of level {int(np.argmin(shares))}, the least used, occur"
    return Check(
        rule,
        found,
        bool(poor),
        f"Levels {', '.join(map(str, poor))} carry almost no information. Possible causes: wrong codec weights, almost "
        "silent audio, or a codec fitted to too little audio.",
    )


def _licences(contents: Contents) -> Check:
    unknown = sum(totals["frames"] for name, totals in contents.licences.items() if name.lower() in ("", "unknown"))
    return share_check(
        "Every conversation has a licence",
        unknown / contents.frames,
        lambda value: value > MAX_UNKNOWN_LICENCE,
        "of the speech has no licence",
        "The permitted uses of the model will be unknown. Set licence of the sources.",
    )
