"""How fast training goes: a stopwatch over the run, and what its seconds were used for.

Seconds of validation, audio samples and checkpoint writing are not training time.
"""

from __future__ import annotations

import resource
import sys
import time
from enum import Enum

import torch

from csm.config import ActivationCheckpointing, CSMConfig
from csm.model.flops import find_gpu, training_flops
from csm.training.metrics import Interval

GIB = 2**30


class Doing(Enum):
    waiting = "waiting"  # for the next batch
    stepping = "stepping"
    other = "other"  # validation, samples, checkpoints


class Stopwatch:
    """Seconds by what the process was doing, since the last reset."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._doing = Doing.other
        self.reset()

    def now(self, doing: Doing) -> None:
        """From here on the process is `doing` that."""
        if doing is Doing.other and self._doing is not Doing.other and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # steps still under way are training time
        self._take()
        self._doing = doing

    def reset(self) -> None:
        self.seconds = dict.fromkeys(Doing, 0.0)
        self._since = time.perf_counter()

    @property
    def training_seconds(self) -> float:
        self._take()
        return self.seconds[Doing.waiting] + self.seconds[Doing.stepping]

    def _take(self) -> None:
        now = time.perf_counter()
        self.seconds[self._doing] += now - self._since
        self._since = now


def throughput_metrics(
    interval: Interval,
    clock: Stopwatch,
    model: CSMConfig,
    frame_rate: float,
    activation_checkpointing: ActivationCheckpointing,
    world_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Rates over all ranks of an interval whose last step has finished on the device.

    frame_rate: of the codec, frames per second of audio. MFU and HFU only where the GPU's peak is known
    (csm/model/flops.py).
    """
    seconds = clock.training_seconds
    frames_per_second = interval.timed_work.c0_positions / seconds
    metrics = {
        "throughput/positions_per_second": interval.timed_positions / seconds,
        "throughput/frames_per_second": frames_per_second,
        "throughput/audio_hours_per_hour": frames_per_second / frame_rate,
        "throughput/padding_share": interval.padding_share,
        "throughput/data_wait_share": clock.seconds[Doing.waiting] / seconds,
    }
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is not None:
        flops = training_flops(model, interval.timed_work)
        executed = (
            flops.hardware_full_checkpointing
            if activation_checkpointing is ActivationCheckpointing.full
            else flops.model
        )
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
