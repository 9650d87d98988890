"""Who runs the units: processes of this machine, a Ray cluster, or Slurm jobs. Only unit ids and reports travel.

An executor is a function `(cfg, units, on_report, on_progress) -> list[UnitFailure]`: it calls `on_report` once for
each unit that it brought to its end, and returns those that it could not, with the reason. Nothing depends on which
executor ran a unit, in what order, or how often it was begun.
"""
