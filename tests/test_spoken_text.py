"""Numbers, dates, times and money as words, and the normalizer as a property of tokenizers."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csm.config import TokenizerConfig, TokenizerKind
from csm.spoken_text import check_languages, spoken_english
from csm.text import ByteTokenizer, HFTokenizer, load_saved_tokenizer, load_tokenizer

SPOKEN = {
    "It costs $12.50, or £0.01.": "It costs twelve dollars and fifty cents, or one penny.",
    "$1 of $1,000 or $1M or €1.5 million": (
        "one dollar of one thousand dollars or one million dollars or one point five million euros"
    ),
    "On March 4, 2024 we met.": "On March fourth, twenty twenty-four we met.",
    "On 3/4/2024, or 2024-05-01": "On March fourth, twenty twenty-four, or May first, twenty twenty-four",
    "the 3rd of May 2005; 4 July": "the third of May two thousand five; the fourth of July",
    "At 5:30 pm, 10:00 a.m., 9:00 or 17:05": "At five thirty pm, ten a.m., nine o'clock or seventeen oh five",
    "I have 21 cats, 1,234,567 dogs": (
        "I have twenty-one cats, one million two hundred thirty-four thousand five hundred sixty-seven dogs"
    ),
    "In 1984, 1905 and 1900.": "In nineteen eighty-four, nineteen oh five and nineteen hundred.",
    "the '90s and the 1980s": "the nineties and the nineteen eighties",
    "1999-2003, 10-15 people": "nineteen ninety-nine to two thousand three, ten to fifteen people",
    "The 1st, the 22nd": "The first, the twenty-second",
    "3.14, 50%, -5": "three point one four, fifty percent, minus five",
    "Call 555-0199.": "Call five five five, zero one nine nine.",
    "Room 007, 1/2 cup, 24/7": "Room zero zero seven, one half cup, twenty-four seven",
    "221B, GPT-4, 3D": "two hundred twenty-one B, GPT-four, three D",
    "It's 5. Then 6, and 7!": "It's five. Then six, and seven!",
    "<laugh> Mhm... So  what?\n": "<laugh> Mhm... So  what?\n",
}


@pytest.mark.parametrize("written", SPOKEN)
def test_what_is_written_is_said(written):
    assert spoken_english(written) == SPOKEN[written]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("0123456789.,:/-$%'£ abmpstndh\n(+"), max_size=24))
@example("99/99/2024 25:61 2024-13-40 31st 0th 1.2.3.4 00000000000000000001 $,5 5$ 1,2,3")
def test_every_number_is_said_and_nothing_fails(text):
    spoken = spoken_english(text)
    assert not re.search("[0-9]", spoken) and spoken_english(spoken) == spoken


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_texts_without_digits_stay_as_they_are(text):
    text = re.sub("[0-9]", "", text)
    assert spoken_english(text) == text


@pytest.mark.slow
def test_the_normalizer_is_saved_with_the_tokenizer(tmp_path, llama_tokenizer):
    plain = ByteTokenizer()
    byte = load_tokenizer(TokenizerConfig(TokenizerKind.bytes, vocab_size=258, normalize="english"))
    llama = load_tokenizer(TokenizerConfig(path=str(llama_tokenizer), normalize="english"))
    assert byte.identity != plain.identity and llama.identity != HFTokenizer.load(llama_tokenizer).identity
    for name, tokenizer in (("byte", byte), ("llama", llama)):
        tokenizer.save(tmp_path / name)
        again = load_saved_tokenizer(tmp_path / name)
        assert again.normalize == "english" and again.identity == tokenizer.identity
        assert again.encode_turn("I saw 3.", 1) == tokenizer.encode_turn("I saw three.", 1)
    config = TokenizerConfig(path=str(tmp_path / "llama"))  # null: as its own files say
    assert load_tokenizer(config).normalize == "english"
    assert plain.encode_turn("3", 0) != byte.encode_turn("3", 0) == plain.encode_turn("three", 0)


def test_other_languages_are_refused_by_name():
    with pytest.raises(ValueError, match=r"tokenizer\.normalize=german: the only normalizer is english"):
        ByteTokenizer(normalize="german")
    check_languages("english", ["en", "und"], "dataset a")
    with pytest.raises(ValueError, match="knows only English, but dataset a holds de, fr"):
        check_languages("english", ["fr", "en", "de"], "dataset a")
