"""Statistics of experiments against known values: planted differences are found, and none is claimed where there is
none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.arms.effects import Variances, effect, needed, variances
from experiments.arms.experiment import Experiment
from experiments.arms.results import compare

CONVERSATIONS = 40


def layout(rng, mean, by_seed, by_conversation, both, seeds=3, conversations=CONVERSATIONS):
    """(sums [S, C], frames [C]) of differences whose true mean is `mean` nats, with these standard deviations."""
    frames = rng.integers(80, 400, conversations).astype(float)
    nats = (
        mean
        + rng.normal(0, by_seed, (seeds, 1))
        + rng.normal(0, by_conversation, (1, conversations))
        + rng.normal(0, both, (seeds, conversations))
    )
    return nats * frames, frames


def test_with_seeds_alone_it_is_students_interval():
    by_seed = np.array([0.1, 0.2, 0.4])
    frames = np.array([100.0, 300.0])
    found = effect(by_seed[:, None] * frames, frames)
    low, high = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    assert (found.value, found.low, found.high) == pytest.approx((by_seed.mean(), low, high))
    assert found.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    assert found.by_seed == pytest.approx(by_seed)


def test_with_conversations_alone_it_is_students_interval_too():
    nats = np.array([0.3, 0.1, -0.1, 0.4, 0.0])
    found = effect(np.tile(nats * 50, (3, 1)), np.full(5, 50.0))
    low, high = stats.t.interval(0.95, 4, nats.mean(), stats.sem(nats))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_arms_that_are_one_and_the_same_are_not_separated():
    found = effect(np.zeros((3, 6)), np.full(6, 10.0))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two seeds"):
        effect(np.ones((1, 6)), np.ones(6))


@pytest.mark.parametrize(
    ("by_seed", "by_conversation", "both"),
    [(0.05, 0.0, 0.0), (0.05, 0.1, 0.1), (0.01, 0.2, 0.05), (0.0, 0.0, 0.2), (0.0, 0.2, 0.0)],
)
def test_intervals_hold_the_true_difference_as_often_as_they_say(by_seed, by_conversation, both):
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(600):
        found = effect(*layout(rng, 0.3, by_seed, by_conversation, both))
        held += found.low <= 0.3 <= found.high
    assert held / 600 > 0.93


def test_intervals_are_not_wide_for_nothing():
    """Without an interaction, 95 % means 95 %, and not all."""
    rng = np.random.default_rng(3)
    found = [effect(*layout(rng, 0.3, 0.05, 0.0, 0.0)) for _ in range(600)]
    assert np.mean([one.low <= 0.3 <= one.high for one in found]) < 0.97


def test_variances_are_those_that_were_planted():
    rng = np.random.default_rng(5)
    sums, frames = layout(rng, 0.0, 0.3, 0.5, 0.2, seeds=60, conversations=300)
    found = variances(sums / frames, np.ones(300))  # all of one length
    assert (found.seeds, found.conversations, found.both) == pytest.approx((0.09, 0.25, 0.04), rel=0.35)


def test_seeds_needed_are_those_of_the_power_of_a_t_test():
    """Checked by drawing: 80 % of experiments of this many seeds find the difference, fewer of one less."""
    found = Variances(seeds=0.05**2, conversations=0.0, both=0.0)
    size = needed(found, 0.06, seeds=3, conversations=40, level=0.05)
    rng = np.random.default_rng(2)

    def share(seeds):
        drawn = rng.normal(0.06, 0.05, (4000, seeds))
        return np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)

    assert share(size.seeds) > 0.78 and share(size.seeds - 1) < 0.8
    assert size.conversations is None  # no number of conversations makes up for three seeds
    shown = stats.ttest_1samp(rng.normal(size.smallest, 0.05, (4000, 3)), 0, axis=1).pvalue < 0.05
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


def test_conversations_are_asked_for_where_they_are_what_varies():
    found = Variances(seeds=0.0, conversations=0.3**2, both=0.0)
    size = needed(found, 0.05, seeds=3, conversations=40, level=0.05)
    assert size.seeds is None
    expected = (1.96 + 0.84) ** 2 * 0.3**2 / 0.05**2  # the usual formula for a large sample
    assert size.conversations == pytest.approx(expected, abs=40)


# ------------------------------------------------------------------------------------------------ whole comparisons


def records(rng, arms, seeds=(1, 2, 3), codes=0):
    """Trainings as `finish` returns them. arms: name -> nats of codebook 0 above that of the reference"""
    frames = rng.integers(80, 400, CONVERSATIONS)
    hard = rng.normal(0, 0.3, CONVERSATIONS)  # some conversations are harder than others, for all arms
    luck = rng.normal(0, 0.02, len(seeds))
    made = []
    for arm, more in arms.items():
        for place, seed in enumerate(seeds):
            nats = 3 + more + hard + luck[place] + rng.normal(0, 0.01) + rng.normal(0, 0.03, CONVERSATIONS)
            items = {
                f"c{n}": {
                    "cluster": f"g{n}",
                    "frames": int(frames[n]),
                    "codes": codes,
                    "nats": {"c0": float(nats[n] * frames[n])},
                }
                for n in range(CONVERSATIONS)
            }
            facts = {"arm": arm, "seed": seed, "steps": 10, "scores": {"whole": items}}
            made.append(facts | {"processor_seconds_per_step": 1.0, "wall_seconds_per_step": 2.0})
    return made


def experiment(arms, **options):
    named = {arm: [] for arm in arms}
    return Experiment("t", "q", arms=named, reference="a", steps=10, measures=["c0"], **options)


def test_a_planted_difference_is_found_and_none_is_claimed_where_there_is_none():
    arms = {"a": 0.0, "better": -0.2, "same": 0.0}
    found = compare(experiment(arms), records(np.random.default_rng(0), arms))["measures"]["c0"]
    better, same = found["differences"]["better"], found["differences"]["same"]
    assert better["separated"] and better["low"] < -0.2 < better["high"] < 0
    assert better["conversations_alone"][0] < -0.2 + 0.05
    assert not same["separated"] and same["low"] < 0 < same["high"]
    assert same["needed"]["seeds"] is None or same["needed"]["seeds"] > 3
    assert same["needed"]["smallest"] < 0.2  # which was found


def test_pairing_removes_what_arms_have_in_common():
    """Conversations differ by 0.3 nats among themselves; the difference of two arms is known far better."""
    arms = {"a": 0.0, "b": 0.05}
    found = compare(experiment(arms), records(np.random.default_rng(1), arms))["measures"]["c0"]
    mean, difference = found["means"]["b"], found["differences"]["b"]
    assert mean["high"] - mean["low"] > 3 * (difference["high"] - difference["low"])


def test_false_claims_are_as_rare_as_the_level_says_over_all_arms():
    rng, arms = np.random.default_rng(4), {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}
    blocks = [compare(experiment(arms), records(rng, arms))["measures"]["c0"] for _ in range(60)]
    claims = sum(any(one["separated"] for one in block["differences"].values()) for block in blocks)
    assert claims <= 6  # 3 are expected; more than 6 have a chance of 3 %


def test_arms_that_were_scored_on_other_frames_are_refused():
    arms = {"a": 0.0, "b": 0.0}
    first, second = (records(np.random.default_rng(0), arms, codes=codes) for codes in (0, 1))
    mixed = [*first[:3], *second[3:]]
    with pytest.raises(ValueError, match="arm 'b', seed 1: its held-out frames"):
        compare(experiment(arms), mixed)
