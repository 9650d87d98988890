"""GPUs of workers: which ones a worker on this machine may use, and requests that cannot be met."""

from __future__ import annotations

import math
import os

import torch

from data_prep.config import DataPrepConfig, ExecutorKind


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]


def workers_with_a_share(gpus_per_worker: float, gpus: int) -> int:
    """Workers among which `gpus` can be divided, `gpus_per_worker` for each; at least 1.

    Shares of a GPU do not span two: 0.4 puts two workers on each.
    """
    if gpus_per_worker < 1:
        return max(1, gpus * _workers_per_gpu(gpus_per_worker))
    return max(1, gpus // round(gpus_per_worker))


def gpus_of(slot: int, gpus_per_worker: float, gpus: list[str]) -> list[str]:
    """Those of `gpus` for worker `slot`. More workers than shares take turns."""
    if gpus_per_worker < 1:
        return [gpus[slot // _workers_per_gpu(gpus_per_worker) % len(gpus)]]
    number = round(gpus_per_worker)
    return [gpus[(slot * number + i) % len(gpus)] for i in range(number)]


def _workers_per_gpu(share: float) -> int:
    return math.floor(1 / share + 1e-6)


def check_gpus(cfg: DataPrepConfig) -> None:
    """Raises ValueError for models on GPUs in workers that get none, and for shares that cannot be given."""
    options = cfg.executor
    kind, share = options.kind, options.gpus_per_worker
    if kind is ExecutorKind.inline:
        return
    if share < 0 or (share > 1 and not share.is_integer()):
        raise ValueError(f"executor.gpus_per_worker={share:g} must be a share of one GPU, or a whole number of GPUs")
    devices = {
        "diarize.device": cfg.diarize.device,
        "transcribe.device": cfg.transcribe.device,
        "score.device": cfg.score.device,
        "codec.device": cfg.codec.device,
    }
    on_gpu = [f"{option}={device}" for option, device in devices.items() if device.startswith("cuda")]
    alone = kind is ExecutorKind.local and options.workers == 1
    if on_gpu and not share and not alone:
        raise ValueError(
            f"{', '.join(on_gpu)} with executor.gpus_per_worker=0: all workers would share the first GPU, or have none;"
            " set executor.gpus_per_worker=1, or 0.5 for two workers on each"
        )
    if kind is ExecutorKind.local and share:
        gpus = len(visible_gpus())
        if gpus < share:
            raise ValueError(f"executor.gpus_per_worker={share:g}, and this machine has {gpus} GPUs")
