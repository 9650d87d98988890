"""Health of the run: steps with non-finite gradients, whose update is skipped on all ranks, and spikes of the loss.

Whether a step is skipped is decided on the device, so nothing waits for it. The host learns of it one step later, when
the next step is already queued, and then counts, records and perhaps stops the run: at the same step on every rank,
since all of them read the same reduced values.

    run_dir/skipped_steps.jsonl   {step, ranks: [{loss, keys: sample keys of each row}, ...]}
    run_dir/loss_spikes.jsonl     {step, loss, mean, deviation, ranks: [...]}
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.config import TrainerConfig
from csm.parallel.ranks import RankAgreement, all_reduce, global_rank
from csm.training.loggers import JsonLines

log = logging.getLogger(__name__)

_MEMORY = 0.98  # of the loss statistics: about the last 50 steps
_FIRST_STEPS = 20  # without a verdict, until the statistics mean something


@dataclass
class _Pending:
    """A step that the host has not evaluated yet. values: on the CPU, complete after `copied`."""

    step: int
    keys: list[list[str]]
    values: Tensor  # [3]: loss of all ranks, whether it is skipped, this rank's share of the loss
    copied: torch.cuda.Event | None


class StepHealth:
    """Watches every optimizer step; see the head of this file."""

    def __init__(self, options: TrainerConfig, run_dir: Path, agreement: RankAgreement) -> None:
        self._options, self._agreement = options, agreement
        self._skips = JsonLines(run_dir / "skipped_steps.jsonl")
        self._spikes = JsonLines(run_dir / "loss_spikes.jsonl")
        self._pending: deque[_Pending] = deque()
        self.skipped = 0  # steps of the whole run
        self._in_a_row = 0
        self._loss = RunningStatistics()

    def check_step(self, step: int, loss_share: Tensor, gradient_norm: Tensor, keys: list[list[str]]) -> Tensor:
        """Whether the update of optimizer step `step` (from 1) must be skipped: float scalar on the device, 1 or 0.

        loss_share: what this rank adds to the step's loss; gradient_norm: global, before clipping, infinite where
        DeepSpeed has skipped the step; keys: the sample keys of this rank's rows. All ranks must call it.
        """
        bad = ~(torch.isfinite(loss_share) & torch.isfinite(gradient_norm))
        loss, bad_ranks = all_reduce(torch.stack((loss_share, bad.to(loss_share.dtype)))).unbind()
        skip = (bad_ranks > 0).to(loss_share.dtype)
        values = torch.stack((loss, skip, loss_share))
        copied = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append(_Pending(step, keys, values.cpu(), copied))
        return skip

    def flush(self, wait_for_last: bool = False) -> None:
        """Evaluates the steps that the device has finished: all but the last, which may be under way.

        Raises FloatingPointError after `max_skipped_in_a_row` skipped steps in a row.
        """
        while len(self._pending) > (0 if wait_for_last else 1):
            pending = self._pending.popleft()
            if pending.copied is not None:
                pending.copied.synchronize()
            loss, skip, share = pending.values.tolist()
            if skip:
                self._record_skip(pending, share)
            else:
                self._in_a_row = 0
                self._look_for_spike(pending, loss, share)

    def _record_skip(self, pending: _Pending, share: float) -> None:
        self.skipped += 1
        self._in_a_row += 1
        counts = f"{self.skipped} skipped so far, {self._in_a_row} in a row"
        self._report(self._skips, pending, share, {}, f"gradients are not finite, the update was skipped ({counts})")
        if self._in_a_row >= self._options.max_skipped_in_a_row:
            raise FloatingPointError(
                f"gradients were not finite in {self._in_a_row} steps in a row, up to step {pending.step}; their "
                f"samples are in {self._skips.path}. Resume from an earlier checkpoint with a lower optim.lr or more "
                "optim.warmup_steps; the weights of checkpoints are finite"
            )

    def _look_for_spike(self, pending: _Pending, loss: float, share: float) -> None:
        sigmas = self._options.spike_sigmas
        mean, deviation = self._loss.mean, self._loss.deviation
        limit = mean + sigmas * deviation
        if sigmas and self._loss.count >= _FIRST_STEPS and loss > limit:
            text = f"loss {loss:.4f} is a spike (running mean {mean:.4f}, standard deviation {deviation:.4f})"
            self._report(self._spikes, pending, share, {"loss": loss, "mean": mean, "deviation": deviation}, text)
            loss = limit  # a spike must not hide the next one
        self._loss.add(loss)

    def _report(self, file: JsonLines, pending: _Pending, share: float, more: dict[str, Any], text: str) -> None:
        ranks = self._agreement.gather({"loss": share if math.isfinite(share) else None, "keys": pending.keys})
        if global_rank() == 0:
            log.warning("step %d: %s; its samples are in %s", pending.step, text, file.path)
            file.append({"step": pending.step, **more, "ranks": ranks})

    def state(self) -> dict[str, Any]:
        """For a checkpoint, after `flush(wait_for_last=True)`."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "loss": asdict(self._loss)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._loss = RunningStatistics(**state["loss"])


@dataclass
class RunningStatistics:
    """Exponentially weighted mean and variance of a series."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def deviation(self) -> float:
        return math.sqrt(self.variance)

    def add(self, value: float) -> None:
        self.count += 1
        share = max(1 - _MEMORY, 1 / self.count)  # a plain mean at first
        difference = value - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)
