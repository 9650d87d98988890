"""Trains a CSM: `python train.py data.path=DATASET model=csm_1b ...`, the program of csm/programs.py."""

from csm.programs import train

if __name__ == "__main__":
    train()
