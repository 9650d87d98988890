"""Numbers and times as words."""

from __future__ import annotations

from random import Random

from experiments.corpus.grammar import Draw

_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
""".split()  # noqa: SIM905
_TENS = """
twenty thirty forty fifty sixty seventy eighty ninety
""".split()  # noqa: SIM905
_MINUTES = ("five past", "ten past", "a quarter past", "twenty past", "half past", "a quarter to")


def spelled(number: int) -> str:
    """0 to 99 in words: 42 is "forty two"."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")


def a_number(rng: Random) -> dict[str, str]:
    return {"number": spelled(rng.randint(2, 99))}


def a_time(rng: Random) -> dict[str, str]:
    """A time of day: "seven o'clock", "half past ten"."""
    hour = spelled(rng.randint(1, 12))
    form = rng.randrange(len(_MINUTES) + 1)
    return {"time": f"{_MINUTES[form]} {hour}" if form < len(_MINUTES) else f"{hour} o'clock"}


def a_sum(rng: Random) -> dict[str, str]:
    """Two numbers, their sum, below a hundred, and their difference."""
    large = rng.randint(22, 79)
    small = rng.randint(2, min(20, 99 - large))
    return {
        "small": spelled(small),
        "large": spelled(large),
        "sum": spelled(small + large),
        "difference": spelled(large - small),
    }


def a_product(rng: Random) -> dict[str, str]:
    """Two factors and their product."""
    one, other = rng.randint(3, 12), rng.randint(3, 8)
    return {"factor": spelled(one), "times": spelled(other), "product": spelled(one * other)}


DRAWN: dict[str, Draw] = {
    "number": a_number,
    "time": a_time,
    **dict.fromkeys(("small", "large", "sum", "difference"), a_sum),
    **dict.fromkeys(("factor", "times", "product"), a_product),
}
"""Slots of grammars that are drawn here, and how."""
