"""Experiments that compare options of train.py: arms x seeds of normal trainings, paired statistics, and a page.

    experiments/NAME/experiment.yaml --trainings--> runs --scores--> experiments/NAME/results.json --> page and plot

`python -m experiments.arms NAME` does all of it, and goes on where it was interrupted (docs/experiments/arms.md).
"""
