"""Being asked to stop: signals become a flag, the ranks agree on it at a step boundary, and the program ends with a
code that says "start me again".

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

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the run is not finished, and continues when it is started again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST = 2.0
"""Seconds within which a repeated signal is the same request: launchers pass on what the whole group received."""


class StopRequest:
    """Why training should end early: what this rank knows of, and what all ranks have agreed on.

    signal: received by this process
    error:  that kept a checkpoint of this process from being written
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.error: OSError | None = None
        self._agreed: tuple[float, ...] = (0.0, 0.0, 0.0)

    def flags(self) -> tuple[float, ...]:
        """To be summed over ranks and given to `agree`."""
        return (*(float(self.signal is number) for number in SIGNALS), float(self.error is not None))

    def agree(self, sums: Sequence[float]) -> None:
        """Raises OSError on every rank if a checkpoint could not be written."""
        self._agreed = tuple(sums)
        if sums[-1]:
            raise self.error or OSError("another process could not write its checkpoint; see what it says")

    @property
    def agreed(self) -> signal.Signals | None:
        """The signal that some rank had received by the last `agree`, the same on every rank."""
        return next((number for number, ranks in zip(SIGNALS, self._agreed, strict=False) if ranks), None)


class Stopped(SystemExit):
    """Ends the program after a signal, with exit code 75 on rank 0.

    The other ranks end with 0: launchers take any other code for a crash, and kill the rest.
    """

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__(EXIT_CODE if rank_zero_only.rank == 0 else 0)
        self.step, self.signal = step, number


@contextmanager
def listening(stop: StopRequest, requeue: bool) -> Iterator[None]:
    """Within the block signals are noted in `stop`, and a second one ends the process at once. When the block ends
    with `Stopped`, rank 0 says so and, if `requeue` and the signal was SIGUSR1, asks Slurm to start the job again."""
    received = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if stop.signal is None:
            stop.signal, received = signal.Signals(number), time.monotonic()
        elif stop.signal == number and time.monotonic() > received + SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = {number: signal.signal(number, note) for number in SIGNALS} if in_main_thread else {}
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


def without_lightning_signals(trainer: L.Trainer) -> L.Trainer:
    """Lightning saves and broadcasts inside its handlers, in the middle of a step and on one rank alone, and asks all
    ranks for a SIGTERM by a broadcast on the device, which waits for the GPU in every step. It has no switch for it."""
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer
