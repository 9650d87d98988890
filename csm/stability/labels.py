"""A look at the labels of the first batch, at the start of every training, and of the model at every validation.

A model learns wrong labels as readily as right ones, and its loss looks healthy meanwhile: labels that are one frame
late make speech faster epoch by epoch, turns without an end never stop, silence after every turn is learned with it.
Four looks, each with a sentence if something is wrong:

    layout     every turn's text ends right before its first frame, its last frame is an end of speech, and exactly its
               frames are predicted
    silence    how long turns go on after the speech, by the codes of codebook 0 that are typical of their last frames
    shift      whether a model that has learned something predicts the frames of the labels, or rather their neighbors
    future     whether what it predicts depends on what comes later

The first two are at the start alone. The other two need a model that has begun to learn, so they are at the start of
runs from weights and at every validation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from csm.arrangement import audio_positions, by_frame, frame_stride
from csm.config import CodeLayout, CSMConfig
from csm.data.packing import RowBatch
from csm.frames import is_eos_frame

log = logging.getLogger(__name__)

SHIFTS = (-1, 0, 1)
LONGEST_SILENCE = 1.0  # seconds after the speech, in the median turn
CLEARLY = 0.1  # nats between the losses of two shifts
_MOST_ROWS = 64  # of a batch that are looked at
_FEWEST_TURNS = 8  # for a verdict on silence
_TAIL = 3  # frames at the end of a turn that are taken to be silent if anything is
_HEAD = slice(2, 9)  # frames of a turn that are taken to be speech
_SILENT_SHARE = 0.8  # of the frames in a stretch of silence that have a silent code
_ROUNDING = 1e-5  # of a sum; what a position may not see does not change even its last bit


@dataclass(frozen=True)
class TurnSpan:
    """A run of frames in a row of a batch, from `start` to before `end`; `step` positions from one to the next."""

    row: int
    start: int
    end: int
    step: int = 1

    @property
    def places(self) -> tuple[int, slice]:
        """Row and places of the frames, an index of [B, S, ...]."""
        return self.row, slice(self.start, self.end, self.step)


def find_turns(rows: RowBatch, layout: CodeLayout = CodeLayout.depth) -> list[TurnSpan]:
    """The runs of frames in a batch, the end-of-speech frames included."""
    frames = _is_frame(rows)  # [B, S]
    goes_on = torch.zeros_like(frames)  # the position before is a frame of the same document
    goes_on[:, 1:] = frames[:, :-1] & (rows.documents[:, 1:] == rows.documents[:, :-1])
    starts = frames & ~goes_on
    ends = torch.ones_like(frames)
    ends[:, :-1] = ~(frames[:, 1:] & goes_on[:, 1:])
    pairs = zip(torch.nonzero(starts).tolist(), torch.nonzero(frames & ends).tolist(), strict=True)
    codebooks = rows.tokens.shape[2] - 1
    step, single = frame_stride(layout, codebooks), audio_positions(1, layout, codebooks)
    return [TurnSpan(row, start, last + 2 - single, step) for (row, start), (_, last) in pairs]


def _is_frame(rows: RowBatch) -> Tensor:
    """bool [B, S]: the position holds codes, hidden ones (`data.frame_dropout`) included."""
    return (rows.documents >= 0) & ~rows.mask[..., -1]


def layout_faults(rows: RowBatch, layout: CodeLayout = CodeLayout.depth) -> list[str]:
    """Sentences on what is wrong with the layout of a batch."""
    turns, codes = find_turns(rows, layout), by_frame(rows.tokens[..., :-1], layout)
    no_text = no_end = early_end = partly = in_turns = 0
    for turn in turns:
        before = turn.start - 1
        text = before >= 0 and bool(rows.mask[turn.row, before, -1])
        no_text += not (text and rows.documents[turn.row, before] == rows.documents[turn.row, turn.start])
        ends = is_eos_frame(codes[turn.places])
        no_end += not bool(ends[-1])
        early_end += bool(ends[:-1].any())
        predicted = rows.targets[turn.places]
        partly += bool(predicted.any()) and not bool(predicted.all())
        in_turns += int(predicted.sum())
    others = int(rows.targets.sum()) - in_turns
    count = len(turns)
    faults = []
    if not int(rows.targets.sum()):
        faults.append("no frame is predicted: data.loss_turns and the turns' `loss` leave nothing to train on")
    if no_text:
        faults.append(f"in {no_text} of {count} turns no text ends right before the first frame")
    if no_end:
        faults.append(f"{no_end} of {count} turns have no end-of-speech frame: the model would not learn to stop")
    if early_end:
        faults.append(f"{early_end} of {count} turns hold an end-of-speech frame before their last frame")
    if partly or others:
        faults.append(
            f"labels look shifted: {partly} of {count} turns are predicted in part, and {others} predicted positions "
            "are no frames"
        )
    return faults


def silent_seconds(turns: Sequence[Tensor], frame_rate: float) -> float:
    """Median length of what goes on after the speech of turns, in seconds; 0 if there are too few to tell.

    turns: codes of codebook 0 of each, int64 [T], without the end-of-speech frame

    A code is silent if it is at least twice as frequent among the last frames of turns as among those near their
    beginning. That needs no codec, and finds whatever the codec makes of the background of these recordings.
    """
    long_enough = [codes for codes in turns if len(codes) >= _HEAD.stop]
    if len(long_enough) < _FEWEST_TURNS:
        return 0.0
    size = 1 + max(int(codes.max()) for codes in long_enough)
    tails = torch.cat([codes[-_TAIL:] for codes in long_enough]).bincount(minlength=size)
    heads = torch.cat([codes[_HEAD] for codes in long_enough]).bincount(minlength=size)
    tail_shares, head_shares = tails / tails.sum(), heads / heads.sum()
    silent = (tail_shares >= 2 * head_shares) & (tail_shares >= 0.02)
    lengths = []
    for codes in long_enough:
        shares = silent[codes.flip(0)].float().cumsum(0) / torch.arange(1, len(codes) + 1)
        found = torch.nonzero(shares >= _SILENT_SHARE)
        lengths.append(0 if not len(found) else 1 + int(found[-1]))
    return sorted(lengths)[len(lengths) // 2] / frame_rate


def silence_faults(rows: RowBatch, frame_rate: float, layout: CodeLayout = CodeLayout.depth) -> list[str]:
    turns = [rows.tokens[turn.places][:, 0] for turn in find_turns(rows, layout)]
    seconds = silent_seconds([codes[:-1] for codes in turns], frame_rate)
    if seconds <= LONGEST_SILENCE:
        return []
    return [
        f"half of the turns go on for {seconds:.1f} s or more after the speech: the model would learn the silence; "
        "prepare the data again with turns.trim_given_seconds, or with given turns that end where the speech ends"
    ]


def later_halves(rows: RowBatch) -> Tensor:
    """bool [B, S]: the positions that come after the first half of the predicted frames of their document."""
    documents = rows.documents.clamp(min=0)
    counts = torch.zeros_like(documents).scatter_add(1, documents, rows.targets.long())  # of each document
    before = counts.cumsum(1) - counts  # in earlier documents of the row
    seen = rows.targets.cumsum(1) - before.gather(1, documents)
    return (rows.documents >= 0) & (2 * seen > counts.gather(1, documents))


@dataclass(frozen=True)
class LabelLosses:
    """Cross entropy of codebook 0 over a batch, in nats; `shifted` is NaN if no frame has neighbors.

    shifted: means with the labels of the frames at `SHIFTS`
    halves:  sums over the first halves of documents, with what comes later as it is and with other tokens there
    """

    shifted: list[float]
    halves: tuple[float, float]

    @staticmethod
    def from_stacked(sums: Tensor) -> LabelLosses:
        """sums: [len(SHIFTS) + 3], sums at `SHIFTS`, number of frames, sums of the halves; over all ranks"""
        *shifted, count, before, after = sums.tolist()
        return LabelLosses([value / (count or math.nan) for value in shifted], (before, after))

    @property
    def best_shift(self) -> int:
        """The shift, other than that of the labels, whose frames are predicted best."""
        return min((shift for shift in SHIFTS if shift), key=self._at)

    def _at(self, shift: int) -> float:
        return self.shifted[SHIFTS.index(shift)]

    @property
    def shift_gain(self) -> float:
        """Nats by which the best other shift beats that of the labels."""
        return self._at(0) - self._at(self.best_shift)

    @property
    def leak(self) -> float:
        """Relative change of the loss of what comes first by what comes later."""
        as_it_is, changed = self.halves
        return abs(changed - as_it_is) / (as_it_is or math.nan)

    def metrics(self) -> dict[str, float]:
        return {"val/shift_gain": self.shift_gain, "val/leak": self.leak}

    def faults(self, vocab_size: int) -> dict[str, str]:
        """Sentences on what is wrong, by its name. vocab_size: codes of codebook 0"""
        found = {}
        best = self._at(self.best_shift)
        if self.shift_gain >= CLEARLY and best <= math.log(vocab_size) - CLEARLY:  # else it knows nothing yet
            found["shift"] = (
                f"the model predicts the frames at {self.best_shift:+d} better than those of the labels "
                f"({best:.2f} against {self._at(0):.2f} nats of codebook 0): it was trained with shifted labels"
            )
        if self.leak > _ROUNDING:
            found["leak"] = (
                "the model sees what it is to predict: other tokens in the second half of conversations change the "
                f"loss of the first by {100 * self.leak:.2g}%; look at the attention mask"
            )
        return found


def metric_faults(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Sentences on what the metrics of a validation show, by names as in `LabelLosses.faults`."""
    found = {}
    gain, leak = metrics.get("val/shift_gain"), metrics.get("val/leak")
    if gain is not None and gain >= CLEARLY:
        found["shift"] = f"frames beside those of the labels are predicted better, by {gain:.2f} nats of codebook 0"
    if leak is not None and leak > _ROUNDING:
        found["leak"] = f"what comes later changes the loss of what comes first, by {100 * leak:.2g}%"
    return found


@dataclass
class LabelWatch:
    """Names of the faults that validations have found so far."""

    named: list[str] = field(default_factory=list)

    def see(self, losses: LabelLosses, vocab_size: int) -> list[str]:
        """Takes the losses of a validation; returns a sentence for each fault that is found for the first time."""
        new = {name: fault for name, fault in losses.faults(vocab_size).items() if name not in self.named}
        self.named += new
        return list(new.values())


def batch_faults(
    microbatches: Sequence[RowBatch], frame_rate: float, layout: CodeLayout = CodeLayout.depth
) -> list[str]:
    """Faults of the layout and the silence of the first batch, on the CPU."""
    rows = _joined(microbatches)
    return layout_faults(rows, layout) or silence_faults(rows, frame_rate, layout)


def warn_of_labels(
    microbatches: Sequence[RowBatch], frame_rate: float, losses: LabelLosses | None, config: CSMConfig
) -> None:
    """Logs all that looks wrong. losses: of the batch; None for a model that has learned nothing yet"""
    faults = batch_faults(microbatches, frame_rate, config.layout)
    if losses is not None:
        faults += losses.faults(config.audio_vocab_size).values()
    for fault in faults:
        log.warning("labels of the first batch: %s", fault)


def _joined(microbatches: Sequence[RowBatch]) -> RowBatch:
    """The first rows of a step, without slots, which these looks do not need."""
    names = ("tokens", "mask", "positions", "documents", "targets")
    parts = {name: torch.cat([getattr(batch, name) for batch in microbatches])[:_MOST_ROWS] for name in names}
    nothing = torch.zeros(len(parts["tokens"]), 0)
    return RowBatch(**parts, slots=nothing.long(), slot_weights=nothing)
