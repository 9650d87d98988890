"""Planted faults show the signs of docs/experiments/health.md in real trainings, and a healthy training shows none."""

from __future__ import annotations

import pytest

from experiments.planted.faults import CASES, VOCAB_SIZE, prepare_data, train_case
from experiments.planted.signs import signs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare_data(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_shows_its_sign_and_no_other(fault, dataset, tmp_path):
    run = train_case(CASES[fault], dataset, tmp_path / "run")
    assert signs(run, VOCAB_SIZE) == {fault} - {"healthy"}
