"""Every limit rejects what is beyond it, for its own reason, and nothing else; texts that recognizers make up."""

from dataclasses import fields

import numpy as np
import pytest
from heard import draft

from data_prep.config import LimitsConfig
from data_prep.records import TurnScore
from data_prep.speech.limits import RateCounts, SourceRates, check
from data_prep.speech.text_checks import (
    chars_per_second,
    hallucination,
    has_markup,
    is_no_speech,
    letters,
    repetition,
    without_controls,
    words,
)

TEXT = "This has thirty-two letters, or nearly."  # 31 letters in 3 s
TURN = draft(0, 10.0, 13.0, TEXT, lang="en", lang_prob=0.8, avg_logprob=-0.5, no_speech_prob=0.3, compression_ratio=1.5)
SCORE = TurnScore(0, -20.0, 0.01, 7000.0, 3.0, 3.5, 4.0, [], "This had.", 0.4, 0.8, 0.7, 0.2)
RATES = SourceRates(median=14.0, deviation=1.0)

# option: (a value that the turn meets, one that it breaks, reason, what the message says)
LIMITS = {
    "min_seconds": (3.0, 3.5, "too_short", "seconds 3 is below 3.5"),
    "max_seconds": (3.0, 2.5, "too_long", "seconds 3 is above 2.5"),
    "min_lang_prob": (0.8, 0.9, "language", "probability of its language 0.8 is below 0.9"),
    "min_ovrl": (3.0, 3.2, "quality", "DNSMOS OVRL 3 is below 3.2"),
    "min_sig": (3.5, 3.6, "quality", "DNSMOS SIG 3.5 is below 3.6"),
    "min_bak": (4.0, 4.1, "quality", "DNSMOS BAK 4 is below 4.1"),
    "max_music": (0.2, 0.1, "quality", "share with music 0.2 is above 0.1"),
    "min_avg_logprob": (-0.5, -0.4, "asr_confidence", "mean log probability -0.5 is below -0.4"),
    "max_compression_ratio": (1.5, 1.4, "compression", "compression ratio 1.5 is above 1.4"),
    "max_no_speech_prob": (0.3, 0.2, "no_speech", "probability of no speech 0.3 is above 0.2"),
    "min_chars_per_second": (10.0, 11.0, "speech_rate", "characters/s 10.33 is below 11"),
    "max_chars_per_second": (11.0, 10.0, "speech_rate", "characters/s 10.33 is above 10"),
    "max_chars_z": (3.7, 3.6, "speech_rate", "deviations, 3.667 is above 3.6"),
    "max_clipped": (0.01, 0.005, "clipping", "share of clipped samples 0.01 is above 0.005"),
    "min_bandwidth": (7000.0, 7500.0, "bandwidth", "bandwidth in Hz 7000 is below 7500"),
    "max_cer": (0.4, 0.3, "text_mismatch", "error rate of its text (heard: 'This had.') 0.4 is above 0.3"),
    "min_half_similarity": (0.8, 0.9, "speaker", "similarity of the voices of its halves 0.8 is below 0.9"),
    "min_speaker_similarity": (0.7, 0.8, "speaker", "its voice to its speaker's other turns 0.7 is below 0.8"),
}


def test_every_limit_has_a_case():
    assert {f.name for f in fields(LimitsConfig)} == {*LIMITS, "repetition", "hallucination"}


@pytest.mark.parametrize("option", LIMITS)
def test_a_limit_rejects_for_its_own_reason(option):
    keeps, breaks, reason, message = LIMITS[option]
    assert check(TURN, SCORE, LimitsConfig(**{option: keeps}), RATES) is None
    rejection = check(TURN, SCORE, LimitsConfig(**{option: breaks}), RATES)
    assert rejection.reason == reason
    assert rejection.message.endswith(message)


def test_what_was_not_measured_passes():
    breaking = LimitsConfig(**{option: case[1] for option, case in LIMITS.items() if "seconds" not in option})
    breaking.min_chars_per_second = breaking.max_chars_per_second = None
    assert check(draft(0, 0.0, 3.0, TEXT), None, breaking, None) is None
    assert check(draft(0, 0.0, 3.0, TEXT), TurnScore(0, *[None] * 6, []), breaking, None) is None
    assert check(TURN, SCORE, LimitsConfig(), RATES) is None


def test_text_limits():
    looping = draft(0, 0.0, 5.0, "yeah " * 8, avg_logprob=-0.5)
    assert check(looping, None, LimitsConfig(hallucination=True), None) is None
    assert check(looping, None, LimitsConfig(repetition=True), None).reason == "repetition"
    made_up = draft(0, 0.0, 5.0, "Thank you.", lang="en", avg_logprob=-0.5)
    assert check(made_up, None, LimitsConfig(repetition=True), None) is None
    assert check(made_up, None, LimitsConfig(hallucination=True), None).reason == "hallucination"


@pytest.mark.parametrize("text", ["yeah " * 8, "Thank you.", "one one one two two two three three three four"])
def test_given_texts_are_not_taken_for_a_recognizers_mistakes(text):
    """Counting, spelling, litanies, poems: whoever wrote the text heard it so."""
    given = draft(0, 0.0, 5.0, text, lang="en")
    assert check(given, None, LimitsConfig(repetition=True, hallucination=True), None) is None


def test_rhetoric_of_which_the_recognizer_is_sure_is_kept():
    text = (
        "It was the best of times. It was the worst of times. It was the age of wisdom. It was the age of foolishness. "
    )
    text += "It was the epoch of belief. It was the epoch of disbelief. It was the best of times."
    both = LimitsConfig(repetition=True, hallucination=True)
    assert check(draft(0, 0.0, 20.0, text, avg_logprob=-0.05), None, both, None) is None
    unsure = check(draft(0, 0.0, 20.0, text, avg_logprob=-0.6), None, both, None)
    assert unsure.reason == "hallucination" and "distinct words" in unsure.message


def test_markup_and_characters_that_nobody_says():
    marked = "<laugh> [noise] {breath} ((unclear)) &lt;b&gt; "
    assert is_no_speech(marked) and is_no_speech("... \U0001f600") and not is_no_speech(marked + "So")
    assert has_markup("Well, <unk> then") and not has_markup("5 < 6 (or so) & more")
    odd = "Well,\x00 \r\nthat\u200b's\u202e fine.\ufeff"
    assert without_controls(odd) == "Well, that's fine."
    assert without_controls("می\u200cخواهم") == "می\u200cخواهم"  # noqa: RUF001 the joiner is spelling


def test_rates_of_a_source_are_its_median_and_robust_deviation():
    """10,000 turns at 15 +- 2 letters/s, and 1000 at 60, which a mean would follow; in any order."""
    rng = np.random.default_rng(0)
    speech_rates = np.concatenate([rng.normal(15.0, 2.0, 10_000), np.full(1000, 60.0)])
    turns = [draft(i, 0.0, 12 / float(rate), "Hello world 12") for i, rate in enumerate(speech_rates)]
    forward, backward = RateCounts(), RateCounts()
    for one, other in zip(turns, turns[::-1], strict=True):
        forward.add(one)
        backward.add(other)
    rates = forward.rates()
    assert rates == backward.rates()
    assert rates.median == pytest.approx(np.median(speech_rates), abs=0.05)
    mad = np.median(np.abs(speech_rates - np.median(speech_rates)))
    assert rates.deviation == pytest.approx(1.4826 * mad, abs=0.1)
    assert check(turns[-1], None, LimitsConfig(max_chars_z=5.0), rates).reason == "speech_rate"
    assert len(forward.counts) < 1000


def test_rates_of_few_or_equal_turns_are_unknown():
    few, equal = RateCounts(), RateCounts()
    for i in range(19):
        few.add(draft(i, 0.0, 1.0 + i))
    for i in range(40):
        equal.add(draft(i, 0.0, 1.0))
    assert few.rates() is None and equal.rates() is None
    few.add(draft(20, 1.0, 1.0))  # no length, no rate
    assert few.rates() is None


def test_letters_and_words():
    assert letters("It's 5 o'clock — né?") == len("Its5oclockné")
    assert letters("cafe\u0301") == 5  # an accent is part of how a letter is written
    assert chars_per_second("ab cd.", 2.0) == 2.0
    assert words("Don’t STOP — “now”, e-mail…") == ["don’t", "stop", "now", "e", "mail"]  # noqa: RUF001
    assert words("今日はhello 123") == ["今", "日", "は", "hello", "123"]


def test_vowel_signs_tones_and_joiners_belong_to_their_letters():
    assert words("नमस्ते, मैं घर जाता हूँ।") == ["नमस्ते", "मैं", "घर", "जाता", "हूँ"]
    assert words("مُحَمَّدٌ رَجُلٌ") == ["مُحَمَّدٌ", "رَجُلٌ"]
    assert words("می\u200cخواهم بروم") == ["می\u200cخواهم", "بروم"]  # noqa: RUF001
    assert words("นี้ดี") == ["นี้", "ดี"]
    assert words("မြန်မာ။") == ["မြ", "န်", "မာ"]
    assert words("tiê\u0301ng Việt") == ["tiếng", "việt"]
    # five of ten words are distinct, of whose fragments hardly a third would be
    assert hallucination("कि की कु के को " * 2, 4.0, "hi", 0.1, -0.5) is None


@pytest.mark.parametrize(
    "text",
    [
        "Thank you. Thank you. Thank you. Thank you. Thank you.",
        "so we went to the market and then we went to the market and then we went to the market and then "
        "we went to the market and then",
        "yeah " * 8,
        "haha" * 5,
        "Nooooooooooo!",
        "はい、はい、はい、はい、はい",
    ],
)
def test_loops_are_repetition(text):
    assert repetition(text)


NATURAL = [
    "No, no, no, no, that's not it.",
    "It was very, very, very good.",
    "Bye bye bye bye.",
    "one two three four five six seven eight nine ten",
    "Call 0000000000, please.",
    "I I I think that that's, you know, you know what I mean.",
    "Rindfleischetikettierungsüberwachungsaufgaben sind das.",  # 43 letters
    "The cat and the dog and the bird and the cow and the horse are on the farm of the man and the woman.",
    "Ja, ja, genau, das ist es ja, das ist ja genau das, was ich meine, ja.",
    "嗯，对对对，我觉得这个可以，我们明天再说吧。",  # noqa: RUF001
    "Thank you very much.",
]


@pytest.mark.parametrize("text", NATURAL)
def test_natural_speech_passes(text):
    assert repetition(text) is None
    assert hallucination(text, letters(text) / 14, None, 0.1) is None


@pytest.mark.parametrize(
    ("text", "seconds", "lang", "no_speech", "why"),
    [
        ("the the a the a a the a the the a a", 4.0, "en", 0.1, "2 distinct words among 12"),
        ("Donaudampf" * 5, 4.0, "de", 0.1, "a word of 50 letters"),
        ("Subtitles by the Amara.org community", 2.0, "en", 0.0, "a subtitler's phrase"),
        ("Субтитры сделал DimaTorzok", 2.0, None, 0.0, "a subtitler's phrase"),
        ("Thank you.", 3.0, "en", None, "a stock phrase, at 2.7 letters/s"),
        ("Thank you.", 1.0, "en", 0.7, "where no speech was likely (0.70)"),
        ("Thank you.", 1.0, "en", 0.2, None),
        ("Thank you for that, Anna.", 9.0, "en", 0.7, None),  # not only the phrase
        ("Merci.", 4.0, "fr", None, "a stock phrase"),
        ("Merci.", 4.0, "en", None, None),  # another language's phrase
        ("谢谢", 1.0, "zh", None, None),
        ("谢谢", 3.0, "zh", None, "a stock phrase"),
    ],
)
def test_hallucinations(text, seconds, lang, no_speech, why):
    found = hallucination(text, seconds, lang, no_speech)
    assert found is None if why is None else why in found
