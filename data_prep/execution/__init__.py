"""`run`, `status`, `retry`: runs all units of a plan through the stages, locally or on a cluster.

run.py          the three commands
fit_codec.py    fits a spectral codec to the plan
pipeline.py     options -> stages, and the worker that runs them on units
unit.py         one unit through the stages, with retries and timeouts
unit_files.py   the files of a unit, and the classification of failures
executor.py     the interface of executors; local.py, ray.py, slurm.py
processes.py    worker processes on this machine
gpus.py         the GPUs of workers

An executor is a function `(cfg, units, on_report, on_progress) -> list[UnitFailure]`: it calls `on_report` once for
each unit that it finished, and returns the units that failed, with the reason. Only unit ids and reports cross process
boundaries. Results do not depend on the executor, the order of units, or how often a unit was started.
"""
