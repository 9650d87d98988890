"""Options of the executors: the processes and machines that run the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class ExecutorKind(Enum):
    inline = "inline"
    """In the process of the command."""
    local = "local"
    """In processes of this machine."""
    ray = "ray"
    """On a Ray cluster."""
    slurm = "slurm"
    """As an array of Slurm jobs, through submitit."""


@dataclass
class ExecutorConfig:
    """Processes and machines that process the units."""

    kind: ExecutorKind = ExecutorKind.local
    """Executor of the units."""
    workers: int = 0
    """Processes at once; 0: one per share of a GPU, or one per `cpus_per_worker` processors."""
    cpus_per_worker: int = 1
    """Processors per worker."""
    gpus_per_worker: float = 0.0
    """GPUs per worker: a whole number, or a share of one. Slurm gives whole ones, rounded up."""
    max_attempts: int = 3
    """Attempts at a recording that kills its worker or fails with a transient error."""
    timeout_factor: float = 20.0
    """A recording may take this many times its length, and at least 10 minutes."""
    ray_address: str | None = None
    """Address of a Ray cluster; null: a new one on this machine."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """Parameters of submitit: slurm_partition, timeout_min, ..."""
    slurm_folder: str = "slurm"
    """Folder of Slurm's logs, relative to the work folder."""
    slurm_cluster: str | None = None
    """null: Slurm; local: submitit's processes on this machine."""
