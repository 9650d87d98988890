"""Evaluates a model: `python evaluate.py checkpoint=MODEL ...`, the program of csm/programs.py."""

from csm.programs import evaluate

if __name__ == "__main__":
    evaluate()
