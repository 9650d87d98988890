"""Seeded text grammars: exchanges of two lines whose slots are filled from word classes.

A grammar is a text file:

    @place: London, Paris, Rome | Athens, Plymouth      a word class; behind the bar: words that no training text has
    [train]                                             an exchange: questions and answers in any wording
    ? What time does the train to {place} leave?
    ! The train to {place} leaves at {time}.

A slot is named after its word class, or after values that code draws (`{time}`); `{place2}` is another word of the
class than `{place}`. Slots of an exchange are shared by its lines, so that the answer depends on the question.
`[read=red]` writes "read" and says "red": for homographs that voices cannot be trusted with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

_SAID = re.compile(r"\[([^=\]]+)=([^\]]+)\]")


@dataclass(frozen=True)
class WordClass:
    """Words of one kind; `held_out` are the ones that no training text contains."""

    words: Sequence[str]
    held_out: Sequence[str] = ()


@dataclass(frozen=True)
class Exchange:
    """Templates of a question and of its answer, in one or more wordings each. `name` goes into the records."""

    name: str
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One turn's text as it is written, and as a voice is asked to say it."""

    text: str
    spoken: str


Draw = Callable[[Random], dict[str, str]]
"""Draws values of slots that belong together, such as two numbers and their sum."""


@dataclass(frozen=True)
class Grammar:
    """All that a level can say.

    classes:    of words, by the name of their slots
    drawn:      draws of values that are no single word, by the name of every slot they fill
    held_out:   words beside those of the classes that no training text contains, such as numbers
    """

    exchanges: Sequence[Exchange]
    classes: Mapping[str, WordClass]
    drawn: Mapping[str, Draw] = field(default_factory=dict)
    held_out: frozenset[str] = frozenset()

    @cached_property
    def held_out_words(self) -> frozenset[str]:
        """Every word that no training text contains, in lower case."""
        of_classes = (word for words in self.classes.values() for held in words.held_out for word in words_of(held))
        return self.held_out | frozenset(of_classes)

    def draw(
        self, rng: Random, share_held_out: float, wanted: Callable[[str], bool]
    ) -> tuple[str, tuple[Line, Line]] | None:
        """A random exchange: its name, its question and its answer; None if one of the two is not `wanted`.

        `share_held_out` is the probability that a word of a class with held-out words is one of them. Numbers may be
        held-out words at any share.
        """
        exchange = rng.choice(self.exchanges)
        slots = _Slots(rng, self, share_held_out)
        question = _line(rng.choice(exchange.questions).format_map(slots))
        if not wanted(question.text):
            return None
        answer = _line(rng.choice(exchange.answers).format_map(slots))
        return (exchange.name, (question, answer)) if wanted(answer.text) else None


def read_grammar(path: Path, drawn: Mapping[str, Draw], held_out: frozenset[str]) -> Grammar:
    """The grammar of a text file. Raises ValueError naming the line that is no part of one."""
    classes: dict[str, WordClass] = {}
    exchanges: list[Exchange] = []
    text = re.sub(r"\n +", " ", path.read_text(encoding="utf-8"))  # indented lines continue the one before
    for line in text.splitlines():
        mark, rest = line[:1], line[1:].strip()
        if mark == "@":
            name, words = rest.split(":")
            known, _, unseen = (part.strip() for part in words.partition("|"))
            classes[name] = WordClass(known.split(", "), unseen.split(", ") if unseen else ())
        elif mark == "[":
            exchanges.append(Exchange(rest.removesuffix("]")))
        elif mark == "?":
            exchanges[-1].questions.append(rest)
        elif mark == "!":
            exchanges[-1].answers.append(rest)
        elif mark not in ("", "#"):
            raise ValueError(f"{path}: {line!r} begins with none of @ [ ? ! #")
    return Grammar(exchanges, classes, drawn, held_out)


class _Slots(dict[str, str]):
    """Values of the slots of one exchange, drawn when a template first asks for them."""

    def __init__(self, rng: Random, grammar: Grammar, share_held_out: float) -> None:
        self._rng, self._grammar, self._share = rng, grammar, share_held_out

    def __missing__(self, slot: str) -> str:
        kind = slot.rstrip("23456789")
        taken = {value for key, value in self.items() if key.rstrip("23456789") == kind}
        if kind in self._grammar.classes:
            words = self._grammar.classes[kind]
            held_out = self._rng.random() < self._share and not taken.issuperset(words.held_out)
            left = [word for word in (words.held_out if held_out else words.words) if word not in taken]
            self[slot] = self._rng.choice(left)
        else:
            number = slot[len(kind) :]
            while slot not in self or self[slot] in taken:
                self.update({key + number: value for key, value in self._grammar.drawn[kind](self._rng).items()})
        return self[slot]


def _line(filled: str) -> Line:
    text, spoken = _SAID.sub(r"\1", filled), _SAID.sub(r"\2", filled)
    return Line(text[0].upper() + text[1:], spoken[0].upper() + spoken[1:])


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def normalized(text: str) -> str:
    """A text as sentences are compared: by its words alone."""
    return " ".join(words_of(text))
