"""`plan`: what sources hold, probed, hashed, cut into units of work; never changed once written.

probe.py        what a file says of itself, and its hash
units.py        recordings -> units
plan_files.py   the plan on disk
plan.py         all of it
"""
