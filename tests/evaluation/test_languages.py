"""Error rates in every script, and the names of languages."""

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from csm.evaluation.text_norm import load_normalizer
from csm.evaluation.wer import align_words, count_errors
from csm.judges.whisper import AsrKind, load_recognizer
from csm.languages import language_code


@pytest.mark.parametrize(
    ("language", "said", "heard", "errors", "units", "measure"),
    [
        ("hi", "मैं घर जाता हूँ।", "मैं घर जाती हूं", 2, 4, "WER"),  # two vowel signs
        ("ta", "நான் பேசுகிறேன்", "நான் பேசுகிறான்", 1, 2, "WER"),
        ("bn", "সে কলা খায়", "সে কালা খায়", 1, 3, "WER"),
        ("vi", "tôi đi chợ", "tôi đi cho", 1, 3, "WER"),
        ("vi", "cho\u031b\u0323", "chợ", 0, 1, "WER"),  # composed or not, the same letter
        ("ar", "مُحَمَّدٌ رَجُلٌ", "محمد رجل", 0, 2, "WER"),  # vowel points are optional
        ("ar", "كتاب جديد", "كتب جديد", 1, 2, "WER"),
        ("he", "שָׁלוֹם", "שלום", 0, 1, "WER"),
        ("fa", "می\u200cخواهم", "می\u200cخواهم!", 0, 1, "WER"),  # noqa: RUF001
        ("tr", "DIŞARI İYİ", "dışarı iyi", 0, 2, "WER"),  # noqa: RUF001
        ("fr", "L'été, [musique] s’il te plaît", "l été s il te plaît", 0, 6, "WER"),  # noqa: RUF001
        ("ko", "안녕하세요 여러분", "안녕하세요 여러분들", 1, 2, "WER"),
        ("zh", "今天天气很好，我们去公园散步。", "今天 天气很好 我们去公园走步", 1, 13, "CER"),  # noqa: RUF001
        ("ja", "コーヒーをください", "コーヒをください", 1, 9, "CER"),
        ("th", "น้ำใจดี", "นำใจดี", 1, 8, "CER"),  # a tone; the vowel of น้ำ is two characters
        ("km", "ភាសាខ្មែរ", "ភាសាខ្មរ", 1, 9, "CER"),
        ("my", "မြန်မာ", "မြန်မ", 1, 6, "CER"),
        ("lo", "ສະບາຍດີ", "ສະບາຍດີ", 0, 7, "CER"),
    ],
)
def test_counted_by_hand(language, said, heard, errors, units, measure):
    normalize = load_normalizer(language)
    found = count_errors(align_words(normalize(said), normalize(heard)))
    assert (found.errors, found.reference_words, normalize.measure) == (errors, units, measure)


@pytest.mark.parametrize("name", ["en", "EN", "en-US", "en_GB", "eng", "English", " english "])
def test_all_names_of_english_get_the_english_normalizer(name):
    assert load_normalizer(name)("I'm twenty-one.") == "i am 21"


@pytest.mark.parametrize(
    ("name", "code"),
    [("Mandarin", "zh"), ("zh-Hans-CN", "zh"), ("cmn", "zh"), ("ger", "de"), ("nb-NO", "no"), ("jv", "jw"),
     ("yue", "yue"), ("ee", "ee"), ("Haitian Creole", "ht")],
)  # fmt: skip
def test_codes_and_names(name, code):
    assert language_code(name) == code


def test_all_codes_of_whisper_are_known():
    assert {language_code(code) for code in LANGUAGES} == set(LANGUAGES)


@pytest.mark.parametrize("name", ["jp", "Klingon", "", "english please", "ajg"])
def test_unknown_languages_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=r"^unknown language '.*': give its ISO 639 code .* or its English name"):
        load_normalizer(name)
    with pytest.raises(ValueError, match="unknown language"):
        load_recognizer(AsrKind.faster_whisper, None, name, "cpu")
