"""Trainings with every fault, and their curves: `python -m experiments.planted.run`, a minute on a core per seed."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from experiments.planted.faults import CASES, VOCAB_SIZE, Records, prepare_data, train_case
from experiments.planted.signs import signs

RESULTS = Path(__file__).with_name("results.json")
KEPT = re.compile(
    r"step|(train|val)/(loss|loss_c0|loss_decoder|accuracy_c0|eos_recall|gradient_norm|shift_gain|leak)|val_codebooks/loss_\d+"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare_data(Path(folder))
        for seed in arguments.seeds:
            for number, (name, case) in enumerate(CASES.items()):
                run = train_case(case, dataset, Path(folder) / f"{number}-{seed}", seed)
                runs.append(summary(name, seed, run))
                print(f"seed {seed}, {name}: signs {runs[-1]['signs']}", flush=True)
    lines = ",\n".join(json.dumps(run) for run in runs)
    arguments.out.write_text(f'{{"vocab_size": {VOCAB_SIZE}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def summary(name: str, seed: int, run: Records) -> dict[str, Any]:
    """A run as it is kept: the curves that the page and its plot show, to four digits."""
    records = [
        {key: value if value is None else float(f"{value:.4g}") for key, value in record.items() if KEPT.fullmatch(key)}
        for record in run
    ]
    return {"fault": name, "seed": seed, "signs": sorted(signs(run, VOCAB_SIZE)), "records": records}


if __name__ == "__main__":
    main()
