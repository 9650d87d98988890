"""Written numbers as the words that are said, for tokenizers: numbers, years, dates, times and money of English.

Nothing else of a text changes, and no digit 0-9 is left. What is ambiguous is read the American way: 3/4/2024 is in
March. Abbreviations and units stay as they are written. The words of numbers come from the package inflect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect

ENGLISH = "english"
NORMALIZERS = (ENGLISH,)
"""Names of the normalizers, as `tokenizer.normalize` gives them."""

_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_MONTH = "|".join(f"{name}|{name[:3]}" for name in _MONTHS) + "|Sept"
_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_SCALES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "t": "trillion"}
_FRACTIONS = {
    "1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters",
    "24/7": "twenty-four seven",
}  # fmt: skip
_LONGEST = 15  # digits; more are said one by one


def check_normalizer(name: str) -> None:
    """Raises ValueError, in one line, for a normalizer that is not known, or whose package is missing."""
    if name not in NORMALIZERS:
        raise ValueError(
            f"tokenizer.normalize={name}: the only normalizer is {ENGLISH}; for other languages, write the words out "
            "in the texts, and leave it null"
        )
    if find_spec("inflect") is None:
        raise ValueError(f"tokenizer.normalize={name} needs the package inflect: pip install 'csm-train[normalize]'")


def check_languages(name: str, languages: Iterable[str], where: str) -> None:
    """Raises ValueError if texts `where` are of other languages than the normalizer's; "und" is not known."""
    others = sorted(set(languages) - {"en", "und"})
    if others:
        raise ValueError(
            f"tokenizer.normalize={name} knows only English, but {where} holds {', '.join(others)}: leave it null, or "
            "prepare English alone"
        )


@lru_cache(maxsize=1 << 16)
def spoken_english(text: str) -> str:
    """The text with numbers, ordinals, years, dates, times and money in words; without a digit 0-9, as it is."""
    if not re.search("[0-9]", text):
        return text
    for pattern, words in _RULES:
        text = pattern.sub(words, text)
    return text


# ----------------------------------------------------------------------------------------------- words of numbers


@lru_cache(maxsize=1)
def _engine() -> inflect.engine:
    import inflect

    return inflect.engine()


def _words(number: str) -> str:
    """Of an integer or, with "th" behind it, its ordinal."""
    words = _engine().number_to_words(number, andword="")
    return str(words).replace(",", "")


def _cardinal(digits: str) -> str:
    """Words of "1,234", "007" or "3.14"."""
    whole, point, decimals = digits.replace(",", "").partition(".")
    spoken = _one_by_one(whole) if len(whole) > _LONGEST or (len(whole) > 1 and whole[0] == "0") else ""
    if whole and not spoken:
        spoken = _words(whole)
    return f"{spoken} point {_one_by_one(decimals)}".strip() if point else spoken


def _one_by_one(digits: str) -> str:
    return " ".join(_words(digit) for digit in digits)


def _ordinal(number: int) -> str:
    return _words(str(number) + "th")


def _year(digits: str) -> str:
    """ "nineteen eighty-four", "two thousand five", "nineteen hundred"."""
    century, rest = int(digits[:2]), int(digits[2:])
    if century % 10 == 0 and rest < 10:
        return _cardinal(digits)
    if rest == 0:
        return f"{_cardinal(str(century))} hundred"
    return f"{_cardinal(str(century))} {'oh ' if rest < 10 else ''}{_cardinal(str(rest))}"


def _date(month: int, day: int, year: str | None) -> str:
    return f"{_MONTHS[month - 1]} {_ordinal(day)}" + (f", {_year(year)}" if year else "")


def _month(name: str) -> str:
    return next(month for month in _MONTHS if month[:3] == name[:3])


def _count(digits: str, unit: str) -> str:
    one = digits.replace(",", "") == "1"
    plural = {"penny": "pence"}.get(unit, f"{unit}s")
    return f"{_cardinal(digits)} {unit if one else plural}"


# ------------------------------------------------------------------------------------------------------ the rules


def _iso_date(match: re.Match[str]) -> str:
    month, day = int(match[2]), int(match[3])
    return _date(month, day, match[1]) if 1 <= month <= 12 and 1 <= day <= 31 else match[0]


def _numeric_date(match: re.Match[str]) -> str:
    month, day = int(match[1]), int(match[2])
    return _date(month, day, match[3]) if 1 <= month <= 12 and 1 <= day <= 31 else match[0]


def _month_first(match: re.Match[str]) -> str:
    year = f", {_year(match[3])}" if match[3] else ""
    return f"{_month(match[1])} {_ordinal(int(match[2]))}{year}" if 1 <= int(match[2]) <= 31 else match[0]


def _day_first(match: re.Match[str]) -> str:
    year = f" {_year(match[3])}" if match[3] else ""
    return f"the {_ordinal(int(match[1]))} of {_month(match[2])}{year}" if 1 <= int(match[1]) <= 31 else match[0]


def _money(match: re.Match[str]) -> str:
    unit, part = _CURRENCIES[match[1]]
    amount, scale = match[2], match[3]
    if scale:
        return f"{_cardinal(amount)} {_SCALES.get(scale.lower(), scale)} {unit}s"
    whole, _, decimals = amount.partition(".")
    if len(decimals) != 2:
        return _count(amount, unit)
    parts = [_count(str(int(decimals)), part)] if int(decimals) else []
    if int(whole.replace(",", "") or 0) or not parts:
        parts.insert(0, _count(whole or "0", unit))
    return " and ".join(parts)


def _time(match: re.Match[str]) -> str:
    hour, minute, half = int(match[1]), int(match[2]), match[3]
    if hour > 24 or minute > 59:
        return match[0]
    spoken = _cardinal(str(hour))
    if minute:
        spoken += f" {'oh ' if minute < 10 else ''}{_cardinal(str(minute))}"
    elif not half:
        spoken += " o'clock" if 1 <= hour <= 12 else " hundred hours"
    return spoken + (f" {half.strip()}" if half else "")


def _decade(match: re.Match[str]) -> str:
    tens = int(match[2])
    plural = {0: "hundreds", 1: "tens"}.get(tens, re.sub("y$", "ies", _cardinal(f"{tens}0")))
    if match[1] is None:
        return plural
    return f"{_cardinal(match[1])} {plural}" if tens else f"{_cardinal(match[1])} hundreds"


def _rule(
    pattern: str, words: Callable[[re.Match[str]], str]
) -> tuple[re.Pattern[str], Callable[[re.Match[str]], str]]:
    return re.compile(pattern), words


# Digits that begin and end where a word does; a hyphen or a dot before them is of another number
_B, _E = r"(?<![\w.,-])", r"(?![\w]|[.,][0-9])"
_RULES = [
    _rule(rf"{_B}([0-9]{{4}})-([0-9]{{2}})-([0-9]{{2}}){_E}", _iso_date),
    _rule(rf"{_B}([0-9]{{1,2}})/([0-9]{{1,2}})/([12][0-9]{{3}}){_E}", _numeric_date),
    _rule(rf"\b({_MONTH})\.? ([0-9]{{1,2}})(?:st|nd|rd|th)?(?:,? ([12][0-9]{{3}}))?{_E}", _month_first),
    _rule(rf"{_B}(?:the )?([0-9]{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\b(?:,? ([12][0-9]{{3}}))?{_E}", _day_first),
    _rule(
        rf"([$£€]) ?({_NUMBER})(?: ?(k|K|m|M|bn|b|B|t|T|(?:hundred|thousand|(?:m|b|tr)illion))\b)?",
        _money,
    ),
    _rule(rf"{_B}([0-9]{{1,2}}):([0-9]{{2}})(?::[0-9]{{2}})?( ?[aApP]\.?[mM]\b\.?)?{_E}", _time),
    _rule(rf"({_NUMBER}) ?%", lambda match: f"{_cardinal(match[1])} percent"),
    _rule(rf"{_B}([1-9][0-9]*)(?:st|nd|rd|th)\b", lambda match: _ordinal(int(match[1]))),
    _rule(rf"{_B}['\u2019]?(1[0-9]|20)?([0-9])0['\u2019]?s\b", _decade),
    _rule(
        rf"{_B}(?:\+?[0-9]{{1,3}}[ -])?(?:\(?[0-9]{{3}}\)?[ -])?[0-9]{{3}}-[0-9]{{4}}{_E}",
        lambda match: _phone(match[0]),
    ),
    _rule(rf"{_B}([123]/[234]|24/7){_E}", lambda match: _FRACTIONS.get(match[1], match[0])),
    _rule(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])", lambda match: " "),
    _rule(r"[0-9]+(?:\.[0-9]+){2,}", lambda match: " point ".join(map(_cardinal, match[0].split(".")))),
    _rule(r"(?<=[0-9])(?:[-\u2013:](?=[0-9])| (?:-|\u2013) (?=[0-9]))", lambda match: " to "),
    _rule(r"(?<=[0-9])/(?=[0-9])", lambda match: " over "),
    _rule(rf"{_B}(1[1-9][0-9]{{2}}|20[0-9]{{2}})(?!\w|[.,]?[0-9]|:)", lambda match: _year(match[1])),
    _rule(rf"(?<![\w)])[-\u2212](?={_NUMBER})", lambda match: "minus "),
    _rule(rf"{_NUMBER}|[0-9]", lambda match: _cardinal(match[0])),
]


def _phone(text: str) -> str:
    return ", ".join(_one_by_one(group) for group in re.findall("[0-9]+", text))
