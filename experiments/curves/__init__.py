"""Expected curves: runs of the proving ground as they went, for comparison with one's own.

`python -m experiments.curves RUN_DIR NAME` keeps a run as runs/NAME.json beside this file and writes the page again.
"""
