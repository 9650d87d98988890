# ruff: noqa: RUF001 phonetic symbols
"""The sentences of the homograph and consistency tests, and both scorers on phonemes that are given."""

from collections import Counter
from itertools import groupby, product

import numpy as np
import pytest

from csm.evaluation.sets.items import consistency_items, homograph_items
from csm.evaluation.sets.scorers import calibrate, forced_advantage, forced_choice, greedy_choice, place
from csm.evaluation.sets.summary import Answer, accuracy, consistency
from csm.evaluation.sets.variants import CONSISTENCY, HOMOGRAPH, in_symbols
from csm.languages import letters

ALL = {**HOMOGRAPH, **CONSISTENCY}
# symbols of espeak's English, with some that are written with two or three characters
VOCABULARY = ["<pad>", *"abdefhiklmnopstuvwzæðŋɐɔəɚɛɡɪɹɾʃʊʌ"]
VOCABULARY += ["ɑː", "ɔː", "iː", "uː", "eɪ", "aɪ", "aʊ", "oʊ", "ɛɹ", "ɪɹ", "ɑːɹ", "əl", "tʃ"]
ANYWHERE = (0.0, 1.0)


def test_the_sentences_are_as_described():
    homographs, pairs = homograph_items(), consistency_items()
    assert len({item.id for item in homographs}) == len({item.text for item in homographs}) == 200
    assert Counter((item.word, item.sense) for item in homographs) == {
        (word, sense): 20 for word, senses in HOMOGRAPH.items() for sense in senses
    }
    assert len({item.id for item in pairs}) == 200
    assert Counter((item.word, item.variant) for item in pairs) == {
        (word, variant): 10 for word, variants in CONSISTENCY.items() for variant in variants
    }
    for word, text in {(i.word, i.text) for i in [*homographs, *pairs]} | {(i.word, i.context) for i in pairs}:
        low, high = place(text, word)  # it occurs once
        assert 0 <= low < high <= 1
        assert text[0].isupper() and text[-1] in ".?" and not any(map(str.isdigit, text))
    for item in [*homographs, *pairs]:  # and in the middle
        words = item.text.lower().strip(".?").split()
        assert item.word not in (words[0], words[-1].strip(","))


def test_place_counts_letters():
    assert place("We saw a big lead weight there", "lead") == pytest.approx((9 / 24 - 0.25, 13 / 24 + 0.25))
    assert letters("We saw a big") == 9
    with pytest.raises(ValueError, match="'lead' occurs 2 times instead of once"):
        place("Lead me to the lead.", "lead")


def test_phonemes_are_written_in_the_recognizers_symbols():
    assert in_symbols(CONSISTENCY["caramel"], VOCABULARY)["two"] == [
        ["k", "ɑːɹ", "m", "əl"],
        ["k", "ɑːɹ", "m", "ɛ", "l"],
    ]
    assert in_symbols({"x": ("tɪɹ",)}, ["t", "ɪ", "ɹ"]) == {"x": [["t", "ɪ", "ɹ"]]}
    assert in_symbols({"x": ("aba",)}, ["ab", "a", "ba"]) == {"x": [["ab", "a"]]}
    assert in_symbols({"x": ("aba",)}, ["ab", "a", "baa", "ba"])["x"] == [["ab", "a"]]
    assert in_symbols({"x": ("abc",)}, ["ab", "a", "bc"]) == {"x": [["a", "bc"]]}  # the longest first leads nowhere
    with pytest.raises(ValueError, match="no symbols for 'lɛd'"):
        in_symbols(HOMOGRAPH["lead"], ["l", "d"])


def spoken(symbols: list[str], rng: np.random.Generator, sure: float = 4.0) -> np.ndarray:
    """Log-probabilities of a peaky recognizer: each symbol for one or two frames, blanks between and around."""
    frames = [VOCABULARY[0]] * int(rng.integers(1, 3))
    for symbol in symbols:
        frames += [symbol] * int(rng.integers(1, 3)) + [VOCABULARY[0]] * int(rng.integers(1, 4))
    logits = rng.normal(0, 0.5, (len(frames), len(VOCABULARY)))
    for row, symbol in zip(logits, frames, strict=True):
        row[VOCABULARY.index(symbol)] += sure
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def greedy(log_probs: np.ndarray) -> list[str]:
    best = [VOCABULARY[number] for number, _ in groupby(log_probs.argmax(axis=1))]
    return [symbol for symbol in best if symbol != VOCABULARY[0]]


@pytest.mark.parametrize("word", ALL)
def test_both_scorers_hear_what_was_said(word):
    """Every realization of every variant, between other sounds."""
    rng = np.random.default_rng(0)
    realizations = in_symbols(ALL[word], VOCABULARY)
    before, after = ["ð", "ə", "n", "oʊ", "s", "uː", "p"], ["w", "ʌ", "z", "h", "eɪ", "m", "ɪ", "k"]
    for variant, ones in realizations.items():
        for one in ones:
            log_probs = spoken([*before, *one, *after], rng)
            assert greedy_choice(greedy(log_probs), realizations, (0.2, 0.8)).variant == variant, one
            found = forced_choice(log_probs, VOCABULARY, 0, realizations, (0.2, 0.8))
            assert found.variant == variant and found.margin > 1, one


def test_one_sound_that_was_misheard_does_not_decide():
    realizations = in_symbols(HOMOGRAPH["bass"], VOCABULARY)
    # a "p" for the "b", in both scorers the vowel decides
    log_probs = spoken(["ð", "ə", "p", "æ", "s", "p", "l", "eɪ"], np.random.default_rng(1))
    assert greedy_choice(greedy(log_probs), realizations, ANYWHERE).variant == "fish"
    assert forced_choice(log_probs, VOCABULARY, 0, realizations, ANYWHERE).variant == "fish"
    # a vowel that is neither is no answer of the greedy scorer
    assert greedy_choice(["b", "ʊ", "s"], realizations, ANYWHERE).variant is None


def test_the_same_sounds_elsewhere_are_another_word():
    realizations = in_symbols(HOMOGRAPH["row"], VOCABULARY)
    sounds = ["ɹ", "aʊ", "n", "d", "ð", "ə", "f", "ɹ", "oʊ", "z", "ə", "n", "p", "ɑː", "ɹ"]  # "round the frozen ..."
    log_probs = spoken(sounds, np.random.default_rng(2))
    assert greedy_choice(sounds, realizations, (0.4, 0.7)).variant == "line"
    assert forced_choice(log_probs, VOCABULARY, 0, realizations, (0.4, 0.7)).variant == "line"


def test_nothing_said_is_undecided():
    realizations = in_symbols(HOMOGRAPH["lead"], VOCABULARY)
    assert greedy_choice([], realizations, ANYWHERE).variant is None
    assert forced_choice(np.zeros((0, len(VOCABULARY))), VOCABULARY, 0, realizations, ANYWHERE).variant is None
    short = spoken(["l"], np.random.default_rng(0))[:2]
    assert forced_choice(short, VOCABULARY, 0, realizations, ANYWHERE).variant is None


def test_forced_alignment_is_the_best_of_all_paths():
    """Against all sequences of symbols of six frames: those that collapse to the word, anywhere."""
    vocabulary, rng = ["_", "a", "b"], np.random.default_rng(3)
    for word, other in (("ab", "ba"), ("aa", "bb"), ("a", "bab")):
        log_probs = np.log(rng.dirichlet([1, 1, 1], size=6))
        free = log_probs.max(axis=1)

        def best(wanted, log_probs=log_probs, free=free):
            scores = []
            for start in range(6):
                for end in range(start + 1, 7):
                    for path in product(range(3), repeat=end - start):
                        collapsed = [vocabulary[number] for number, _ in groupby(path) if number]
                        if path[0] and path[-1] and collapsed == list(wanted):
                            score = sum(log_probs[start + i, number] for i, number in enumerate(path))
                            scores.append(score - free[start:end].sum())
            return max(scores)

        found = forced_advantage(log_probs, vocabulary, 0, {"x": [list(word)], "y": [list(other)]}, ANYWHERE)
        assert found == pytest.approx(best(word) - best(other))


def test_calibration_moves_the_threshold_between_the_variants():
    advantages, first = [5.0, 4.0, 2.5, 2.0, 1.0, -3.0], [True, True, True, False, False, False]
    assert calibrate(advantages, first) == pytest.approx(2.25)
    assert calibrate([6.0, -1.0], [True, False]) == 2.5
    assert calibrate([1.0], [True]) == 0.0
    realizations = in_symbols(HOMOGRAPH["lead"], VOCABULARY)
    log_probs = spoken(["l", "ɛ", "d"], np.random.default_rng(4))
    margin = forced_choice(log_probs, VOCABULARY, 0, realizations, ANYWHERE).margin
    assert forced_choice(log_probs, VOCABULARY, 0, realizations, ANYWHERE, offset=margin + 1).variant == "guide"


def test_accuracy_counts_undecided_as_wrong():
    answers = [Answer("lead", "metal", "metal")] * 16 + [Answer("bass", "fish", None)] * 4
    found = accuracy(answers)
    assert found.over_words.value == 0.8 and found.undecided == 4
    assert found.by_word == {"bass": (0, 4), "lead": (16, 16)}
    assert (found.low, found.high) == pytest.approx((0.5840, 0.9193), abs=1e-4)  # Wilson's interval of 16 of 20
    assert found.over_words.clusters == 2


def test_consistency_tells_following_from_habit():
    both = [(item.word, item.variant) for item in consistency_items()]
    follows = consistency([Answer(word, variant, variant) for word, variant in both])
    assert (follows.accuracy.over_words.value, follows.kappa, follows.majority) == (1.0, 1.0, 0.5)
    habit = consistency([Answer(word, variant, next(iter(CONSISTENCY[word]))) for word, variant in both])
    assert habit.accuracy.over_words.value == 0.5 and habit.majority == 1.0
    assert habit.kappa == pytest.approx(0)
    silent = consistency([Answer(word, variant, None) for word, variant in both])
    assert (silent.accuracy.over_words.value, silent.majority, silent.kappa) == (0.0, 0.0, 0.0)
