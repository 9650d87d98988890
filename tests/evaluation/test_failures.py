"""Failures of utterances, and the numbers with and without them."""

import pytest

from csm.evaluation.failures import find_failures
from csm.evaluation.judging import add_words
from csm.evaluation.prompts import EvalPrompt
from csm.evaluation.scores import score_system
from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.utterances import Flag, System, Utterance
from csm.inference.segments import Segment

TEXT = "Please hold the line while I look for the number that you asked for."


def utterance(hypothesis: str = TEXT, **fields) -> Utterance:
    """A spoken turn of 4 s."""
    known = {"seconds": 4.0, "reference_seconds": 4.0, "finish_reason": "stop"}
    u = Utterance("call/1", System.model, 0, "call", 0, TEXT, **known | fields)
    add_words(u, hypothesis, load_normalizer("en"))
    u.flags = find_failures(u)
    return u


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, []),
        ({"seconds": 0.0, "hypothesis": ""}, [Flag.empty]),
        ({"finish_reason": "length"}, [Flag.runaway]),
        ({"hypothesis": f"{TEXT} you asked for. you asked for."}, [Flag.repeated]),
        ({"hypothesis": "Please hold the line while I look."}, [Flag.truncated]),
        # a short end that is missing is not a failure, and neither are words missing inside
        ({"hypothesis": "Please hold the line while I look for the number that you asked"}, []),
        ({"hypothesis": "Please hold that you asked for."}, []),
        ({"clipped": 0.01}, [Flag.clipped]),
        ({"clipped": 0.00001}, []),
        ({"seconds": 2.0}, [Flag.too_fast]),
        ({"seconds": 2.0, "reference_seconds": None}, []),
        # short because its end is missing, not because it is fast
        ({"seconds": 2.0, "hypothesis": "Please hold the line while I look."}, [Flag.truncated]),
        ({"hypothesis": " ".join(f"word{n}" for n in range(40))}, [Flag.long_transcript]),
    ],
)
def test_failures_are_found_and_nothing_else(fields, flags):
    assert utterance(**fields).flags == flags


def test_short_texts_may_differ_in_length():
    u = Utterance("call/1", System.model, 0, "call", 0, "Yes, indeed.", 0.4, reference_seconds=1.0)
    assert find_failures(u) == []


def test_error_rate_is_given_with_and_without_failures():
    """Nine sound utterances and one that runs away for 100 words of 14."""
    words = " ".join(100 * ["banana"])
    turns = [utterance() for _ in range(9)] + [utterance(words, finish_reason="length")]
    metrics = score_system(System.model, turns, 10, ("wer_corpus", "wer_mean", "wer_sound", "failed", "speed")).metrics
    assert metrics["wer_corpus"].value == pytest.approx(100 / 140)
    assert metrics["wer_mean"].value == pytest.approx(100 / 14 / 10)
    assert metrics["wer_sound"].value == 0 and metrics["wer_sound"].items == 9
    assert metrics["failed"].value == 0.1
    assert metrics["speed"].items == 9  # the length of a runaway is its limit's


def test_no_failure_among_few_is_not_certainty():
    metrics = score_system(System.model, [utterance() for _ in range(20)], 20, ("failed",)).metrics
    assert metrics["failed"].value == 0 and 0.1 < metrics["failed"].high < 0.2  # Wilson


def test_leaked_words_are_those_of_the_turns_before_that_the_text_lacks():
    context = [Segment(1, "The elephant asked for the number.")]
    prompt = EvalPrompt("call/1", TEXT, 0, "call", context=context)
    u = Utterance("call/1", System.model, 0, "call", 0, TEXT, 4.0)
    add_words(u, f"elephant {TEXT} banana number", load_normalizer("en"), prompt)
    assert (u.errors.insertions, u.leaked) == (3, 1)
    add_words(u, TEXT, load_normalizer("en"), prompt)
    assert u.leaked == 0
