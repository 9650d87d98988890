import pytest

from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import DiffWord, WordErrors, align_words, corpus_wer, count_errors, mean_wer


def errors(reference: str, hypothesis: str) -> WordErrors:
    return count_errors(align_words(reference, hypothesis))


def test_corpus_and_mean_against_hand_computed_values():
    utterances = [
        errors("please hold", "please fold"),  # 1 substitution of 2 words
        errors("all circuits are busy now", "all circuits are busy right now"),  # 1 insertion on 5 words
        errors("a b c d e f g h i j", "a b c d e f g"),  # 3 deletions of 10 words
    ]
    assert [(u.hits, u.substitutions, u.deletions, u.insertions) for u in utterances] == [
        (1, 1, 0, 0),
        (5, 0, 0, 1),
        (7, 0, 3, 0),
    ]
    assert corpus_wer(utterances) == pytest.approx(5 / 17)
    assert mean_wer(utterances) == pytest.approx((1 / 2 + 1 / 5 + 3 / 10) / 3)


def test_empty_hypothesis_deletes_every_word():
    assert errors("goodbye my friend", "") == WordErrors(hits=0, substitutions=0, deletions=3, insertions=0)
    assert errors("goodbye my friend", "").rate == 1.0


def test_empty_reference_has_no_rate_but_its_insertions_count_in_the_corpus():
    silent, wrong, right = errors("", "thank you"), errors("", ""), errors("one two three four", "one two three four")
    assert (silent.insertions, silent.rate) == (2, None)
    assert (wrong.errors, wrong.rate) == (0, None)
    assert corpus_wer([silent, wrong, right]) == pytest.approx(2 / 4)
    assert mean_wer([silent, wrong, right]) == 0.0
    assert corpus_wer([silent]) is None
    assert mean_wer([silent]) is None


def test_rates_can_exceed_one():
    assert errors("hello", "well hello there you").rate == 3.0


def test_alignment_lists_single_words_even_where_errors_are_neighbors():
    assert align_words("on the mat is it", "on a hat is") == [
        DiffWord("equal", "on", "on"),
        DiffWord("substitute", "the", "a"),
        DiffWord("substitute", "mat", "hat"),
        DiffWord("equal", "is", "is"),
        DiffWord("delete", "it", ""),
    ]


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("I'm twenty-one.", "i am 21"),
        ("Don't!  Hang   UP", "do not hang up"),
        ("Um, the tone [beep] please", "the tone, please."),
    ],
)
def test_english_normalizer_makes_spellings_of_the_same_words_agree(written, heard):
    normalize = load_normalizer("en")
    assert normalize(written) == normalize(heard) != ""


def test_other_languages_keep_their_letters():
    assert load_normalizer("de")("Schöne Grüße, Müller!") == "schöne grüße müller"
