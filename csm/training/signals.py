"""Stop requests: a signal sets a flag, the ranks agree on it at a step boundary, and the program ends with an exit code
that says "start me again".

    SIGTERM   stop: save, end with exit code 75. What clusters and people send.
    SIGUSR1   the same, and under Slurm the job is requeued: #SBATCH --signal=USR1@120 sends it before the time is up.

A SIGTERM requeues nothing, because `scancel` sends one too; where Slurm preempts jobs it requeues them itself.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from lightning.fabric.utilities.rank_zero import rank_zero_only

from csm.parallel.ranks import global_rank

log = logging.getLogger(__name__)

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the run is not finished, and continues when it is started again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST = 2.0
"""Seconds within which a repeated signal is the same request: launchers pass on what the whole group received."""


class StopRequest:
    """Signals received by this process, and the one that all ranks have agreed on."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.agreed: signal.Signals | None = None

    def flags(self) -> list[float]:
        """One number for each of SIGNALS, to be summed over ranks and given to `agree`."""
        return [float(self.signal is number) for number in SIGNALS]

    def agree(self, sums: Sequence[float]) -> None:
        """From here on `agreed` is a signal that some rank had received, the same on every rank."""
        self.agreed = next((number for number, ranks in zip(SIGNALS, sums, strict=True) if ranks), None)


class Stopped(SystemExit):
    """Ends the program after a signal, with exit code 75 on rank 0.

    The other ranks end with 0: launchers take any other code for a crash, and kill the rest.
    """

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__(EXIT_CODE if global_rank() == 0 else 0)
        self.step, self.signal = step, number


@contextmanager
def signal_handlers(stop: StopRequest, requeue: bool) -> Iterator[None]:
    """Within the block signals are recorded in `stop`, and a second one ends the process at once. When the block ends
    with `Stopped`, rank 0 says so and, if `requeue` and the signal was SIGUSR1, asks Slurm to start the job again."""
    received = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if stop.signal is None:
            stop.signal, received = signal.Signals(number), time.monotonic()
        elif stop.signal == number and time.monotonic() > received + SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = {number: signal.signal(number, on_signal) for number in SIGNALS} if in_main_thread else {}
    try:
        yield
    except Stopped as stopped:
        _announce(stopped, requeue)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@rank_zero_only
def _announce(stopped: Stopped, requeue: bool) -> None:
    print(f"stopped at step {stopped.step} by {stopped.signal.name}; start again to continue", flush=True)
    if not (requeue and stopped.signal is signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ):
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the plain number of one task of an array may name the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except OSError as error:
        log.warning("job %s is not requeued (scontrol: %s); submit it again to continue", job, error.strerror)
    except subprocess.CalledProcessError as error:
        log.warning("job %s is not requeued (%s); submit it again to continue", job, error.stderr.strip())
