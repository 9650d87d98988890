"""Languages: their codes, and which of them are written without spaces."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

UNSPACED = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "yue", "zh"})
"""Languages that are written without spaces between words. A recognizer's words are characters, or the characters of
one token; error rates count characters."""

MARKS = "\u200c\u200d" + "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c)[0] == "M")
"""Vowel signs, tones and accents, which belong to the letter before them, and so do joiners; in regular expressions
none of them is in \\w, so words of Indic scripts and vocalised Arabic would break at each."""

# ISO 639-1 beyond the languages that Whisper knows.
_OTHER_CODES = (
    "aa ab ae ak an av ay bi bm ce ch co cr cu cv dv dz ee eo ff fj fy ga gd gn gv ho hz ia ie ig ii ik io iu kg ki kj "
    "kl kr ks ku kv kw ky lg li lu mh na nd ng nr nv ny oj om or os pi qu rm rn rw sc se sg sm ss st ti tn to ts tw ty "
    "ug ve vo wa wo xh za zu"
)
# Languages that Whisper knows, by its codes, each with its other ones: ISO 639-2 and 639-3, and old or finer ISO 639-1.
_SAME = {
    code: known
    for known, codes in {
        "af": "afr", "am": "amh", "ar": "ara arb", "as": "asm", "az": "aze", "ba": "bak", "be": "bel", "bg": "bul",
        "bn": "ben", "bo": "bod tib", "br": "bre", "bs": "bos", "ca": "cat", "cs": "ces cze", "cy": "cym wel",
        "da": "dan", "de": "deu ger", "el": "ell gre", "en": "eng", "es": "spa", "et": "est", "eu": "eus baq",
        "fa": "fas per", "fi": "fin", "fo": "fao", "fr": "fra fre", "gl": "glg", "gu": "guj", "ha": "hau", "haw": "",
        "he": "heb iw", "hi": "hin", "hr": "hrv", "ht": "hat", "hu": "hun", "hy": "hye arm", "id": "ind in",
        "is": "isl ice", "it": "ita", "ja": "jpn", "jw": "jav jv", "ka": "kat geo", "kk": "kaz", "km": "khm",
        "kn": "kan", "ko": "kor", "la": "lat", "lb": "ltz", "ln": "lin", "lo": "lao", "lt": "lit", "lv": "lav",
        "mg": "mlg", "mi": "mri mao", "mk": "mkd mac", "ml": "mal", "mn": "mon", "mr": "mar", "ms": "msa may",
        "mt": "mlt", "my": "mya bur", "ne": "nep", "nl": "nld dut", "nn": "nno", "no": "nor nob nb", "oc": "oci",
        "pa": "pan", "pl": "pol", "ps": "pus", "pt": "por", "ro": "ron rum mo", "ru": "rus", "sa": "san", "sd": "snd",
        "si": "sin", "sk": "slk slo", "sl": "slv", "sn": "sna", "so": "som", "sq": "sqi alb", "sr": "srp", "su": "sun",
        "sv": "swe", "sw": "swa", "ta": "tam", "te": "tel", "tg": "tgk", "th": "tha", "tk": "tuk", "tl": "tgl fil",
        "tr": "tur", "tt": "tat", "uk": "ukr", "ur": "urd", "uz": "uzb", "vi": "vie", "yi": "yid", "yo": "yor",
        "yue": "", "zh": "zho chi cmn",
    }.items()
    for code in (known, *codes.split())
}  # fmt: skip


@lru_cache(maxsize=256)
def language_code(language: str) -> str:
    """The code of a language, as Whisper writes it: "en" for "en", "EN", "en-US", "en_GB", "eng", "English".

    Raises:
        ValueError: neither a language's English name nor its ISO 639 code.
    """
    name = language.strip().lower()
    code = name.replace("_", "-").split("-")[0]
    if code in _SAME:
        return _SAME[code]
    if code in _OTHER_CODES.split():
        return code
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE  # slow to import

    if name in TO_LANGUAGE_CODE:
        return str(TO_LANGUAGE_CODE[name])
    raise ValueError(f"unknown language {language!r}: give its ISO 639 code (en, de, ja) or its English name (german)")


def letters(text: str) -> int:
    """Number of letters, the marks on them, and digits."""
    return sum(unicodedata.category(character)[0] in "LMN" for character in text)
