import numpy as np
import pytest

from csm.evaluation.statistics import estimate_ratio


def simulate(rng: np.random.Generator, clusters: int, per_cluster: int, spread: float) -> tuple[list, list, list]:
    """Word errors of utterances whose error rate (mean 0.2) differs between clusters by `spread`."""
    rates = np.clip(0.2 + spread * rng.standard_normal(clusters), 0, 1)
    words = rng.integers(5, 20, size=(clusters, per_cluster))
    errors = rng.binomial(words, rates[:, None])
    names = np.repeat([f"show{i}" for i in range(clusters)], per_cluster)
    return errors.ravel().tolist(), words.ravel().tolist(), names.tolist()


def test_value_is_the_ratio_of_sums():
    estimate = estimate_ratio([1, 0, 5], [10, 2, 8], ["a", "b", "c"], samples=50)
    assert estimate.value == pytest.approx(6 / 20)
    assert (estimate.items, estimate.clusters) == (3, 3)
    assert estimate.low <= estimate.value <= estimate.high


def test_interval_covers_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        estimate = estimate_ratio(*simulate(rng, clusters=40, per_cluster=4, spread=0.08), samples=400)
        hits += estimate.low <= 0.2 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.98  # nominal 0.95; the standard error of 300 trials is 0.013


def test_utterances_of_one_cluster_are_not_taken_for_independent():
    errors, words, shows = simulate(np.random.default_rng(1), clusters=20, per_cluster=25, spread=0.1)
    by_show = estimate_ratio(errors, words, shows)
    by_utterance = estimate_ratio(errors, words, [str(i) for i in range(len(errors))])
    assert by_show.value == by_utterance.value
    assert by_show.high - by_show.low > 2 * (by_utterance.high - by_utterance.low)


def test_equal_arguments_give_equal_intervals_and_the_seed_matters():
    data = simulate(np.random.default_rng(2), clusters=9, per_cluster=3, spread=0.1)
    assert estimate_ratio(*data) == estimate_ratio(*data)
    assert estimate_ratio(*data, seed=1) != estimate_ratio(*data, seed=2)


def test_one_cluster_has_no_interval():
    estimate = estimate_ratio([1, 2], [4, 4], ["call", "call"])
    assert (estimate.value, estimate.low, estimate.high, estimate.clusters) == (0.375, None, None, 1)


def test_replicates_of_wordless_clusters_do_not_break_the_interval():
    estimate = estimate_ratio([1, 0], [4, 0], ["spoken", "wordless"], samples=200)
    assert np.isfinite([estimate.low, estimate.high]).all()


@pytest.mark.parametrize(("numerators", "denominators"), [([1], [1, 2]), ([1, 1], [0, 0])])
def test_impossible_input_is_refused(numerators, denominators):
    with pytest.raises(ValueError, match="estimate_ratio"):
        estimate_ratio(numerators, denominators, ["a", "b"])
