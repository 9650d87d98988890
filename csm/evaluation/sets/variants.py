# ruff: noqa: RUF001 phonetic symbols
"""Variants of the tested words, in the symbols of espeak's American English that phoneme recognizers are trained on.

Each variant has one or more realizations, of which the best counts. Labels are by hand: a converter from text to
phonemes would have to know the sense itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

Variants = Mapping[str, tuple[str, ...]]

HOMOGRAPH: dict[str, Variants] = {
    "lead": {"metal": ("lɛd",), "guide": ("liːd",)},
    "bass": {"music": ("beɪs",), "fish": ("bæs",)},
    "tear": {"rip": ("tɛɹ",), "eye": ("tɪɹ", "tiɹ")},
    "wound": {"injury": ("wuːnd",), "wind": ("waʊnd",)},
    "row": {"line": ("ɹoʊ",), "quarrel": ("ɹaʊ",)},
}
"""Word -> sense -> realizations."""

CONSISTENCY: dict[str, Variants] = {
    "aunt": {"ant": ("ænt",), "ahnt": ("ɑːnt", "ɔnt")},
    "data": {"day": ("deɪɾə", "deɪtə"), "dat": ("dæɾə", "dætə")},
    "envelope": {"en": ("ɛnvəloʊp", "ɛnvɪloʊp"), "on": ("ɑːnvəloʊp", "ɑːnvɪloʊp", "ɔnvəloʊp")},
    "mobile": {"bul": ("moʊbəl", "moʊbiːl"), "bile": ("moʊbaɪl",)},
    "route": {"root": ("ɹuːt",), "rout": ("ɹaʊt",)},
    "vase": {"vace": ("veɪs", "veɪz"), "vahz": ("vɑːz",)},
    "either": {"ee": ("iːðɚ", "iːðə"), "eye": ("aɪðɚ", "aɪðə")},
    "adult": {"second": ("ɐdʌlt", "ədʌlt"), "first": ("ædʌlt",)},
    "often": {"silent": ("ɔfən", "ɔːfən", "ɑːfən"), "spoken": ("ɔftən", "ɔːftən", "ɑːftən")},
    "caramel": {"three": ("kæɹəmɛl", "kæɹəməl", "kɛɹəməl"), "two": ("kɑːɹməl", "kɑːɹmɛl")},
}
"""Word -> variant -> realizations; "second" and "first" are the stressed syllable, "three" and "two" their number."""

Realizations = dict[str, list[list[str]]]
"""Variant -> realizations, each a list of a recognizer's symbols."""


def in_symbols(variants: Variants, vocabulary: Collection[str], spell: Callable[[str], str] = str) -> Realizations:
    """The realizations that can be written in the recognizer's symbols, the longest symbols first.

    spell: espeak's symbols as the recognizer writes them

    Raises:
        ValueError: none of a variant's realizations can be.
    """
    longest = max(map(len, vocabulary))
    found: Realizations = {}
    for variant, realizations in variants.items():
        written = [_symbols(spell(phones), vocabulary, longest) for phones in realizations]
        found[variant] = [one for one in written if one]
        if not found[variant]:
            raise ValueError(f"the recognizer has no symbols for {realizations[0]!r}; use a phoneme model of espeak's")
    return found


def _symbols(phones: str, vocabulary: Collection[str], longest: int) -> list[str]:
    """Symbols of `phones`, [] if it cannot be written."""
    if not phones:
        return []
    for size in range(min(longest, len(phones)), 0, -1):
        if phones[:size] in vocabulary:
            rest = _symbols(phones[size:], vocabulary, longest)
            if rest or size == len(phones):
                return [phones[:size], *rest]
    return []
