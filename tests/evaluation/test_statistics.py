import math
from statistics import NormalDist

import numpy as np
import pytest

from csm.evaluation.statistics import cohen_kappa, compare_ratios, estimate_ratio, holm, wilson


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


def covered(rng: np.random.Generator, trials: int, clusters: int, per_cluster: int, spread: float) -> float:
    """How often the interval holds the true rate."""
    hits = 0
    for _ in range(trials):
        estimate = estimate_ratio(*simulate(rng, clusters, per_cluster, spread), samples=400)
        hits += estimate.low <= 0.2 <= estimate.high
    return hits / trials


# Nominal 0.95; the standard error of 600 trials is 0.009.
@pytest.mark.parametrize(("clusters", "per_cluster", "spread"), [(40, 4, 0.08), (12, 10, 0.05)])
def test_interval_covers_the_true_rate_as_often_as_it_says(clusters, per_cluster, spread):
    assert 0.92 <= covered(np.random.default_rng(0), 600, clusters, per_cluster, spread) <= 0.98


def two_systems(rng: np.random.Generator, clusters: int, items: int, seeds: int, better: float) -> tuple:
    """Errors and words of two systems on the same texts: speakers differ, items within speakers and seeds too."""
    words = np.repeat(rng.integers(5, 20, size=(clusters, items, 1)), seeds, axis=2)
    hard = np.clip(0.2 + 0.08 * rng.standard_normal((clusters, 1, 1)) + 0.05 * rng.standard_normal(words.shape), 0, 1)
    own = 0.05 * rng.standard_normal((2, clusters, 1, 1))  # what a speaker is to one system alone
    errors = [rng.binomial(words, np.clip(hard + own[i] - better * i, 0, 1)).ravel() for i in range(2)]
    names = np.repeat([f"voice{i}" for i in range(clusters)], items * seeds).tolist()
    return (errors[0], words.ravel()), (errors[1], words.ravel()), names


@pytest.mark.parametrize("clusters", [8, 25])
def test_equal_systems_are_called_different_as_rarely_as_they_should(clusters):
    rng = np.random.default_rng(3)
    found = [compare_ratios(*two_systems(rng, clusters, 5, 2, better=0.0), samples=200) for _ in range(400)]
    rejected = sum(difference.p <= 0.05 for difference in found) / 400
    assert rejected <= 0.06
    covered = sum(difference.low <= 0 <= difference.high for difference in found) / 400
    assert 0.92 <= covered <= 0.98


def test_better_system_is_found_with_its_difference():
    difference = compare_ratios(*two_systems(np.random.default_rng(4), 30, 6, 2, better=0.08))
    assert difference.p < 0.01 and difference.low < 0.08 < difference.high
    assert (difference.items, difference.clusters) == (360, 30)


def test_exchange_test_of_few_clusters_is_exact():
    """Of the 2^5 exchanges, only none and all give a difference as large as five equal ones."""
    names = list("abcde")
    difference = compare_ratios(([1, 1, 1, 1, 1], [9] * 5), ([4, 4, 4, 4, 4], [9] * 5), names)
    assert difference.value == pytest.approx(-3 / 9) and difference.p == pytest.approx(2 / 32)
    equal = compare_ratios(([1, 2, 3, 4, 5], [9] * 5), ([1, 2, 3, 4, 5], [9] * 5), names)
    assert (equal.value, equal.p, equal.low, equal.high) == (0, 1, 0, 0)
    alone = compare_ratios(([1], [9]), ([2], [9]), ["a"])
    assert (alone.p, alone.low) == (None, None)


def test_mean_over_clusters_weighs_every_document_the_same():
    estimate = estimate_ratio([1, 1, 10], [2, 2, 100], ["a", "a", "b"], pool="clusters", samples=50)
    assert estimate.value == pytest.approx((0.5 + 0.1) / 2) and estimate.items == 3


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []


def test_wilson_interval_of_published_examples():
    """Of 200 samples: 80 % -> [73.9, 85.0], 90 % -> [85.1, 93.4]; and zero failures are not certainty."""
    assert [round(100 * side, 1) for side in wilson(160, 200)] == [73.9, 85.0]
    assert [round(100 * side, 1) for side in wilson(180, 200)] == [85.1, 93.4]
    z = NormalDist().inv_cdf(0.975)
    assert wilson(0, 20) == pytest.approx((0, z * z / (20 + z * z)))


def test_kappa_by_hand():
    """Seen 0.7; by chance 0.6 * 0.7 + 0.4 * 0.3."""
    a = ["yes"] * 6 + ["no"] * 4
    b = ["yes"] * 5 + ["no"] + ["yes"] * 2 + ["no"] * 2
    assert cohen_kappa(a, b) == pytest.approx((0.7 - 0.54) / (1 - 0.54))
    assert math.isnan(cohen_kappa(["yes"], ["yes"]))


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
