"""Given texts that were compared with the sound, from texts.parquet: how many disagree, and the worst."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_prep.packing.pack import TEXTS_FILE
from data_prep.report.tables import batches

DISAGREES = 0.5
"""Character error rate from which a text is not what is said; see data_prep/stages/given_texts.py."""
WORST = 20
_COLUMNS = ["recording", "audio", "turn", "start", "end", "text", "heard", "cer", "kept"]


@dataclass
class ComparedTexts:
    """All given texts that were compared, whether their turns were kept or not."""

    rates: np.ndarray  # float32 [texts]
    disagreeing: int
    disagreeing_kept: int  # of those, in the dataset
    worst: list[dict[str, Any]]  # rows of `records.ComparedText`, the highest rates first


def read_texts(folder: Path) -> ComparedTexts | None:
    """Sums of texts.parquet; None if the dataset has none, since nothing was compared."""
    path = folder / TEXTS_FILE
    if not path.is_file():
        return None
    rates: list[np.ndarray] = []
    kept = 0
    worst: list[dict[str, Any]] = []
    for table in batches(path, _COLUMNS):
        rates.append(table["cer"].to_numpy().astype(np.float32))
        disagreeing = table.filter(pc.greater(table["cer"], DISAGREES))
        kept += pc.sum(disagreeing["kept"]).as_py() or 0
        some = disagreeing.take(pc.sort_indices(disagreeing, [("cer", "descending")])[:WORST]).to_pylist()
        worst = heapq.nsmallest(WORST, [*worst, *some], key=lambda row: (-row["cer"], row["recording"], row["turn"]))
    found = np.concatenate(rates) if rates else np.zeros(0, np.float32)
    return ComparedTexts(found, int((found > DISAGREES).sum()), kept, worst)
