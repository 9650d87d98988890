"""The whitepaper's tables and figures follow from the code, and its formulas hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm.data.packing import select_slots
from docs.generate_figures import TABLES, config_of, files, row_flops


@pytest.mark.slow
def test_tables_and_figures_are_up_to_date():
    for path, content in files().items():
        assert path.read_text(encoding="utf-8") == content, "python -m docs.generate_figures writes it anew"


def test_numbers_computed_by_hand():
    """1B: parameters of Sesame's checkpoint, and the weights that a frame reads, both from its shapes."""
    assert "| text embeddings | 262.7 |" in TABLES["parameters"]()
    assert "| **all** | **1,552.8** |" in TABLES["parameters"]()
    row = next(line for line in TABLES["generation traffic"]().splitlines() if "csm_1b" in line)
    backbone, depth = (float(cell) for cell in row.split("|")[2:4])
    assert backbone == pytest.approx(
        2 * (16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192) + 2048 * 2051) / 1e9, abs=0.005
    )
    layers = 4 * (2 * 1024**2 + 2 * 1024 * 256 + 3 * 1024 * 8192)
    assert depth == pytest.approx(2 * (31 * (layers + 1024 * 2051) + 2048 * 1024) / 1e9, abs=0.005)


def test_amortization_divides_the_decoders_work():
    config = config_of("csm_1b")
    full, sixteenth = row_flops(config, 1), row_flops(config, 16)
    assert sixteenth.decoder == full.decoder / 16 and sixteenth.backbone == full.backbone


def test_variance_of_the_amortized_sum_is_that_of_sampling_without_replacement():
    rng = np.random.default_rng(0)
    length, slots, draws = 300, 40, 4_000
    targets, eos = torch.zeros(length, dtype=torch.bool), torch.zeros(length, dtype=torch.bool)
    targets[20:] = True
    eos[[80, 160, 299]] = True
    losses = rng.gamma(4.0, 0.5, size=length)
    sums = np.empty(draws)
    for i in range(draws):
        chosen, weights = select_slots(targets, eos, slots, rng)
        sums[i] = (losses[chosen.numpy()] * weights.numpy()).sum()
    others = losses[(targets & ~eos).numpy()]
    number, drawn = len(others), slots - 3
    expected = number**2 * (1 - drawn / number) * others.var(ddof=1) / drawn
    assert sums.mean() == pytest.approx(losses[targets.numpy()].sum(), rel=0.005)
    assert sums.var() == pytest.approx(expected, rel=0.1)
