"""Text normalization before errors are counted, and the units that are counted: words, or characters.

Reference and hypothesis pass through the same function, so that "I'm twenty-one." and "i am 21" agree. English uses
the normalizer published with Whisper (Radford et al. 2022, appendix C), without its British/American spelling table.

Every other language is lower-cased and freed of bracketed notes, punctuation and symbols. Whisper's normalizer for
these languages takes combining marks for punctuation, and so deletes the vowels of all Indic scripts and the tones of
Thai; here marks are letters, in their composed form (NFKC). Only the vowel points of Arabic and Hebrew go, which most
writers leave out, and characters without width.

A language that is written without spaces is counted in characters (Unicode code points): its rate is a CER, and
`measure` says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from csm.languages import UNSPACED, language_code

Rate = Literal["WER", "CER"]
"""Error rate of words, of characters."""

_NOTES = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]*\)")  # [music], <noise>, (laughs), as in Whisper's normalizer
_POINTS = re.compile(  # harakat, Quranic signs and the tatweel of Arabic; points and accents of Hebrew
    "[\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
_APOSTROPHE_LETTER = "\u02bc"  # typed for the apostrophe inside Ukrainian words


@dataclass(frozen=True)
class TextNormalizer:
    """Callable `text -> units separated by single spaces`.

    name:    goes into every report, because an error rate without its normalizer means little
    unit:    of the counts, a word or a character
    """

    name: str
    function: Callable[[str], str]
    unit: Literal["word", "character"] = "word"

    @property
    def measure(self) -> Rate:
        """Name of the error rate: "WER" or "CER"."""
        return "WER" if self.unit == "word" else "CER"

    def __call__(self, text: str) -> str:
        words = self.function(text).split()
        return " ".join(words if self.unit == "word" else "".join(words))


def load_normalizer(language: str) -> TextNormalizer:
    """The normalizer of a language given by its code or English name: "en", "en-US", "english".

    Raises:
        ValueError: an unknown language.
    """
    code = language_code(language)
    if code == "en":
        package = f"transformers {version('transformers')}"
        return TextNormalizer(f"Whisper English, no spelling table ({package})", EnglishTextNormalizer({}))
    dotted = code in ("az", "tr")

    def function(text: str) -> str:
        return letters_and_marks(text, dotted)

    name = f"letters, marks and digits, lower case (Unicode {unicodedata.unidata_version})"
    if code in UNSPACED:
        return TextNormalizer(f"{name}, characters", function, "character")
    return TextNormalizer(name, function)


def letters_and_marks(text: str, dotted_i: bool = False) -> str:
    """Lower-case letters with their marks, and digits; everything else is a space or, without width, nothing.

    dotted_i: I is the capital of the dotless letter, as in Turkish.
    """
    text = _NOTES.sub(" ", unicodedata.normalize("NFKC", text))
    if dotted_i:
        text = text.replace("I", "ı")  # noqa: RUF001
    text = text.replace("İ", "i").lower()  # lower() alone would leave the dot behind as a mark
    text = _POINTS.sub("", text).replace(_APOSTROPHE_LETTER, " ")
    return "".join(map(_kept, unicodedata.normalize("NFKC", text)))


def _kept(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LMN":
        return character
    return "" if category == "Cf" else " "
