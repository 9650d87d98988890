"""Units on a Ray cluster: a Ray Data job over unit ids with a pool of actors, each with its own models.

Only ids and reports are sent: the actors read audio and write results themselves, so work folder and recordings must
be on storage that every node mounts under the same path.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.config import DataPrepConfig
from data_prep.execution.executor import UNIT_ERRORS, OnProgress, UnitFailure
from data_prep.execution.local import MAX_DEATHS, number_of_workers
from data_prep.execution.pipeline import Worker
from data_prep.execution.unit import UnitReport


class _Actor:
    def __init__(self, cfg: DataPrepConfig) -> None:
        self.cfg = cfg
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        (unit,) = batch["unit"]
        try:
            # Not in __init__, where Ray would retry an exception forever.
            self.worker = self.worker or Worker(self.cfg)
            outcome: UnitReport | UnitFailure = self.worker.run(str(unit))
        except UNIT_ERRORS as error:
            outcome = UnitFailure.of(str(unit), error)
        return {"outcome": [pickle.dumps(outcome)]}


def run_ray(
    cfg: DataPrepConfig, units: list[str], on_report: Callable[[UnitReport], None], on_progress: OnProgress
) -> list[UnitFailure]:
    """See `Executor`. Raises ModuleNotFoundError if Ray is not installed."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("executor.kind=ray needs Ray: pip install 'csm-train[ray]'") from error
    options = cfg.executor
    here = options.ray_address is None
    if not ray.is_initialized():
        ray.init(address=options.ray_address, include_dashboard=False if here else None, log_to_driver=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    workers = min(number_of_workers(cfg), len(units)) if here or options.workers else len(units)
    dataset = ray.data.from_items([{"unit": unit} for unit in units]).repartition(target_num_rows_per_block=1)
    outcomes = dataset.map_batches(
        _Actor,
        fn_constructor_args=(cfg,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker,
        # By default, Ray retries forever. A retry resumes the unit, see unit.py.
        max_restarts=MAX_DEATHS,
        max_task_retries=MAX_DEATHS,
    )
    missing = set(units)
    failures: list[UnitFailure] = []
    try:
        for row in outcomes.iter_rows():
            outcome = pickle.loads(row["outcome"])
            missing.discard(outcome.unit)
            if isinstance(outcome, UnitFailure):
                failures.append(outcome)
            else:
                on_report(outcome)
                on_progress("unit", outcome.seconds)
    except ray.exceptions.RayError as error:
        failures += [UnitFailure(unit, f"Ray failed: {error}") for unit in sorted(missing)]
    finally:
        if here:
            ray.shutdown()
    return failures
