"""`run`, `status`, `retry`: all units of a plan through the stages, here or on a cluster.

run.py          the three commands
fit_codec.py    a spectral codec fitted to the plan
pipeline.py     options -> stages, and the worker that runs them on units
unit.py         one unit through the stages, whatever happens; unit_files.py: its files and failures
executor.py     what executors have in common; local.py, ray.py, slurm.py
processes.py    workers on this machine

An executor is a function `(cfg, units, on_report, on_progress) -> list[UnitFailure]`: it calls `on_report` once for
each unit that it brought to its end, and returns those that it could not, with the reason. Only unit ids and reports
travel. Nothing depends on which executor ran a unit, in what order, or how often it was begun.
"""
