"""Metrics of training and validation: sums that stay on the device until a line is logged, and throughput
(docs/metrics.md).

    microbatch --add_microbatch--> the step's sums --end_step--> the interval's sums --read--> numbers

A skipped step does not count in the losses and gradient norms of its interval; the work it did counts. Seconds of
validation, audio samples and checkpoint writing are not training time.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from csm.config import ActivationCheckpointing, LossConfig, TrainConfig
from csm.data.packing import RowBatch
from csm.model.flops import Work, find_gpu, training_flops
from csm.model.loss import LossSums
from csm.parallel.ranks import all_reduce

GIB = 2**30

CODEBOOK_BANDS = ((1, 8), (8, 16), (16, 32))
"""Codebooks from..before that are averaged for display."""


@dataclass(frozen=True)
class Interval:
    """Totals of the steps since the last logged line, over all ranks.

    losses: sums on the CPU, of the steps that were not skipped; norms: means over these steps, NaN without any
    rows_positions, work: of all steps; padding is rows_positions without work.positions
    timed_positions, timed_work: of the steps that this process ran itself, which is what its clock has seen
    """

    losses: LossSums
    norms: dict[str, float]
    rows_positions: int
    work: Work
    timed_positions: int
    timed_work: Work

    @property
    def padding_share(self) -> float:
        return 1 - self.work.positions / self.rows_positions


class IntervalSums:
    """The sums of the interval under way. copies: ranks that measure the same rows (tensor parallelism)."""

    _step: Tensor | None  # [2K + 7], see LossSums.stacked
    _sums: Tensor | None  # [2K + 7 + norms + 1]: losses, norms, number of steps not skipped
    _work: Tensor | None  # int64 [5], see _work
    _restored_work: Tensor | None  # of all ranks, from before this process
    _norm_names: list[str]

    def __init__(self, copies: int = 1) -> None:
        self._copies = copies
        self._reset()

    def add_microbatch(self, sums: LossSums, rows: RowBatch) -> None:
        stacked, work = sums.stacked(), _work(rows)
        self._step = stacked if self._step is None else self._step + stacked
        self._work = work if self._work is None else self._work + work

    @property
    def step(self) -> LossSums:
        """Sums of the microbatches of the step under way, on this rank."""
        assert self._step is not None, "a step has microbatches"
        return LossSums.from_stacked(self._step)

    def end_step(self, norms: dict[str, Tensor], skipped: Tensor) -> None:
        """norms: of the gradients before clipping, the same on every rank; skipped: scalar, 1 or 0."""
        assert self._step is not None, "a step has microbatches"
        values = torch.cat((self._step, torch.stack(list(norms.values())), torch.ones_like(skipped)[None]))
        # Not a product: what is skipped may be NaN.
        values = torch.where(skipped > 0, torch.zeros_like(values), values)
        self._norm_names = list(norms)
        self._sums = values if self._sums is None else self._sums + values
        self._step = None

    def read(self) -> Interval:
        """The interval's numbers; begins the next one. Waits for the device; all ranks must take part."""
        state = self.state()
        self._reset()
        losses, norms, count = _split(state["sums"], len(state["norms"]))
        work, timed = state["work"].tolist(), state["timed_work"].tolist()
        return Interval(
            losses=LossSums.from_stacked(losses),
            norms={name: _ratio(value, count) for name, value in zip(state["norms"], norms.tolist(), strict=True)},
            rows_positions=work[0],
            work=Work(*work[1:]),
            timed_positions=timed[0],
            timed_work=Work(*timed[1:]),
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the sums over all ranks, which must all take part. Empty between two intervals."""
        if self._sums is None or self._work is None:
            return {}
        losses, norms, count = _split(self._sums, len(self._norm_names))
        sums = torch.cat((all_reduce(losses) / self._copies, norms, count[None])).cpu()
        timed = all_reduce(self._work).cpu() // self._copies
        work = timed if self._restored_work is None else timed + self._restored_work
        return {
            "norms": self._norm_names,
            "sums": sums,
            "work": work,
            "timed_work": timed,
            "end_losses": True,
        }

    def load_state(self, state: dict[str, Any], data_rank: int, device: torch.device) -> None:
        """Continues the interval of a checkpoint: its sums are those of data rank 0, of all its copies, from now on."""
        self._reset()
        if not state:
            return
        losses, norms, count = _split(state["sums"], len(state["norms"]))
        if "end_losses" not in state:  # earlier checkpoints: without a weight of end frames, these did not count
            losses = torch.cat((losses, losses.new_zeros(2)))
        self._norm_names = state["norms"]
        self._sums = torch.cat((losses if data_rank == 0 else torch.zeros_like(losses), norms, count[None])).to(device)
        self._work = torch.zeros_like(state["work"], device=device)
        self._restored_work = state["work"]

    def _reset(self) -> None:
        self._step = self._sums = self._work = self._restored_work = None
        self._norm_names = []


def _split(values: Tensor, num_norms: int) -> tuple[Tensor, Tensor, Tensor]:
    """(losses [2K + 7], norms, number of steps)."""
    losses, norms, count = values.split((values.numel() - num_norms - 1, num_norms, 1))
    return losses, norms, count[0]


def _work(rows: RowBatch) -> Tensor:
    """int64 [5]: positions of the rows, then the fields of `Work`."""
    filled = rows.documents >= 0
    return torch.stack(
        (
            filled.new_full((), filled.numel(), dtype=torch.int64),
            filled.sum(),
            # Positions of a document are 0..len-1, and 1 + 3 + 5 + ... + (2 len - 1) = len^2.
            ((2 * rows.positions + 1) * filled).sum(),
            rows.targets.sum(),
            (rows.slot_weights > 0).sum(),
        )
    )


def loss_metrics(sums: LossSums, prefix: str) -> dict[str, float]:
    """Per-frame means of every codebook, unweighted by the run's loss weights, in nats; NaN without any frame."""
    frames = float(sums.frames)
    losses = [_ratio(value, frames) for value in sums.losses.tolist()]
    accuracies = [_ratio(value, frames) for value in sums.correct.tolist()]
    metrics = {
        f"{prefix}/loss_c0": losses[0],
        f"{prefix}/loss_decoder": _mean(losses[1:]),
        f"{prefix}/perplexity_c0": math.exp(min(losses[0], 700.0)),  # exp(710) is no float any more
        f"{prefix}/entropy_c0": _ratio(float(sums.entropy), frames),
        f"{prefix}/accuracy_c0": accuracies[0],
        f"{prefix}/accuracy_top5_c0": _ratio(float(sums.top5), frames),
        f"{prefix}/accuracy_decoder": _mean(accuracies[1:]),
        f"{prefix}/eos_recall": _ratio(float(sums.eos[1]), float(sums.eos[0])),
    }
    for first, end in CODEBOOK_BANDS:
        if first < len(losses):
            band = f"c{first}_{min(end, len(losses)) - 1}"
            metrics[f"{prefix}/loss_{band}"] = _mean(losses[first:end])
            metrics[f"{prefix}/accuracy_{band}"] = _mean(accuracies[first:end])
    for codebook, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        metrics[f"{prefix}_codebooks/loss_{codebook:02d}"] = loss
        metrics[f"{prefix}_codebooks/accuracy_{codebook:02d}"] = accuracy
    return metrics


def objective(sums: LossSums, config: LossConfig) -> float:
    """The training loss per frame, with the run's weights; NaN without any frame."""
    return _ratio(float(sums.loss(config, 1.0)), float(sums.frames))


def _ratio(value: float, count: Tensor | float) -> float:
    return value / float(count) if count else math.nan


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------ throughput


class Phase(Enum):
    data = "data"  # waiting for the next batch
    step = "step"  # and logging
    other = "other"  # validation, samples, checkpoints


class PhaseTimer:
    """Seconds spent in each phase since the last reset."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phase = Phase.other
        self.reset()

    def enter(self, phase: Phase) -> None:
        """Ends the current phase."""
        if phase is Phase.other and self._phase is not Phase.other and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # steps still under way are training time
        self._take()
        self._phase = phase

    def reset(self) -> None:
        self.seconds = dict.fromkeys(Phase, 0.0)
        self._since = time.perf_counter()

    @property
    def training_seconds(self) -> float:
        self._take()
        return self.seconds[Phase.data] + self.seconds[Phase.step]

    def _take(self) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._since = now


def interval_metrics(
    interval: Interval, config: LossConfig, optimizer: torch.optim.Optimizer, cursor: dict[str, Any]
) -> dict[str, float]:
    """Losses, gradient norms and learning rates of an interval, and how far the data is. cursor: of its last batch"""
    metrics = {"train/loss": objective(interval.losses, config)} | loss_metrics(interval.losses, "train")
    metrics["train/gradient_norm"] = interval.norms["total"]
    metrics |= {f"train/gradient_norm_{part}": norm for part, norm in interval.norms.items() if part != "total"}
    metrics |= {f"train/lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
    metrics["progress/rows"] = cursor["rows"]
    return metrics | {f"progress/epoch_{name}": place[0] for name, place in cursor["sources"].items()}


def throughput_metrics(
    interval: Interval,
    timer: PhaseTimer,
    config: TrainConfig,
    frame_rate: float,
    world_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Rates over all ranks of an interval whose last step has finished on the device.

    frame_rate: of the codec, frames per second of audio. MFU and HFU only where the GPU's peak is known
    (csm/model/flops.py).
    """
    seconds = timer.training_seconds
    frames_per_second = interval.timed_work.c0_positions / seconds
    metrics = {
        "throughput/positions_per_second": interval.timed_positions / seconds,
        "throughput/frames_per_second": frames_per_second,
        "throughput/audio_hours_per_hour": frames_per_second / frame_rate,
        "throughput/padding_share": interval.padding_share,
        "throughput/data_wait_share": timer.seconds[Phase.data] / seconds,
    }
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is not None:
        flops = training_flops(config.model, interval.timed_work)
        recomputed = config.trainer.activation_checkpointing is ActivationCheckpointing.full
        executed = flops.hardware_full_checkpointing if recomputed else flops.model
        possible = seconds * world_size * gpu.peak_flops
        metrics |= {"throughput/mfu": flops.model / possible, "throughput/hfu": executed / possible}
    return metrics | memory_metrics(device)


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Peaks of this process since it began, in GiB."""
    if device.type == "cuda":
        return {
            "memory/allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "memory/reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return {"memory/resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
