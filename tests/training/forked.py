"""Training runs in processes that start at once: forked from a server that has imported everything already.

A real process for every rank, with its own pid to send signals to; only the seconds of imports are saved.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

from csm.errors import user_errors
from tests.conftest import compose_train


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.forked", "csm.training.build", "pytest"])
    return context


class Run:
    """`train.py` with these overrides in one process for each rank, `before` being called first in each.

    strategy: of more than one"""

    def __init__(
        self,
        overrides: list[str],
        log: Path,
        ranks: int = 1,
        environment: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
        strategy: str = "ddp",
    ) -> None:
        self.logs = [log.with_name(f"{log.name}-{rank}") for rank in range(ranks)]
        variables = environment or {}
        if ranks > 1:
            overrides = [*overrides, f"strategy={strategy}", f"trainer.devices={ranks}"]
            variables |= launcher_variables(ranks)
        self.processes: list[ForkServerProcess] = []
        for rank, file in enumerate(self.logs):
            own = variables | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
            process = server().Process(target=_main, args=(overrides, file, own, before))
            process.start()
            self.processes.append(process)

    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def wait(self) -> list[int]:
        """Exit codes of the ranks; minus the number of the signal that ended one."""
        for process in self.processes:
            process.join(120)
            assert process.exitcode is not None, "still running after two minutes"
        return [process.exitcode for process in self.processes]

    def kill(self) -> list[int]:
        for process in self.processes:
            process.kill()
        return self.wait()

    def output(self, rank: int = 0) -> str:
        return self.logs[rank].read_text()


def finished(overrides: list[str], log: Path, ranks: int = 1, strategy: str = "ddp") -> Run:
    run = Run(overrides, log, ranks, strategy=strategy)
    assert run.wait() == [0] * ranks, "".join(run.output(rank) for rank in range(ranks))
    return run


def wait_for(condition: Callable[[], bool], run: Run, seconds: float = 60) -> None:
    """Returns when the condition holds or a process of the run has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and run.running():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.0005)


def launcher_variables(ranks: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = {name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", **sizes, **address}


def _main(overrides: list[str], log: Path, environment: dict[str, str], before: Callable[[], None] | None) -> None:
    os.setsid()  # signals to the whole group are for this rank and its workers
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in a program that is started plainly
    torch.set_num_threads(1)
    if before is not None:
        before()
    from csm.training.build import train

    with user_errors():
        train(compose_train(overrides))
