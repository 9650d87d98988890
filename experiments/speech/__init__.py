"""Experiments on how a trained model is to speak: `python -m experiments.speech NAME MODEL` (docs/experiments/arms.md).

description.py -> command.py --evaluate.py for each arm--> comparison.py (results.json) -> page.py (page and plot)
"""
