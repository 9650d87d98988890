"""The conversations of a corpus: which texts, by which voices, in which set. A pure function of level, seed and hours.

Sets, and what they are for:

    train           everything a model learns from
    val             sentences that are in no other set; every word is in train
    test_sentence   the same again: what a run is judged by
    test_word       every turn holds a word that no training text contains
    test_voice      as test_sentence, by voices that are in no other set (levels with such voices)

A sentence belongs to one of the first three by a hash of its words alone, whatever the seed: a corpus of another seed
never trains on the sentences that this one is tested with. No sentence occurs twice in a corpus as long as the
grammar has new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from experiments.corpus.grammar import Grammar, Line, normalized, words_of

SETS = ("val", "test_sentence", "test_word", "test_voice", "train")
"""In the order of rendering: the small ones first."""
_SHARES = {"val": 4, "test_sentence": 4}  # of 100 sentences
_GAP_SECONDS = (0.2, 0.5)
_EXCHANGES = (2, 5)
_MAX_DRAWS = 200
_SECONDS_PER_CHARACTER, _SECONDS_PER_TURN = 0.05, 0.75  # rough, with the gap: only to count hours ahead of rendering


@dataclass(frozen=True)
class Turn:
    """A line and its voice, how fast it is spoken (1 is the voice's own rate), and the seconds of silence before it."""

    line: Line
    voice: str
    rate: float
    gap: float


@dataclass(frozen=True)
class Conversation:
    """Turns of two voices in alternation. `exchanges` names their patterns, one for two turns."""

    id: str
    set: str
    turns: tuple[Turn, ...]
    exchanges: tuple[str, ...]


@dataclass(frozen=True)
class Level:
    """A grammar, the voices of training, those of test_voice only, and the sizes of the small sets.

    voices:     pairs of them talk to each other; with two voices it is always the same pair
    small:      conversations of each set but train
    hours:      of train, if none are asked for
    rates:      lowest and highest speaking rate of a turn
    """

    name: str
    grammar: Grammar
    voices: Sequence[str]
    test_voices: Sequence[str]
    small: int
    hours: float
    rates: tuple[float, float] = (1.0, 1.0)


def conversations(level: Level, seed: int, hours: float) -> Iterator[Conversation]:
    """All conversations, in the order of `SETS`; those of fewer hours are the first ones of more hours."""
    for name in SETS:
        voices = level.test_voices if name == "test_voice" else level.voices
        if not voices:
            continue
        rng, said = Random(f"{level.name} {seed} {name}"), set[str]()
        seconds, number = 0.0, 0
        while seconds < hours * 3600 if name == "train" else number < level.small:
            one = _conversation(
                level, f"{level.name}-{seed}-{name.replace('_', '-')}-{number:05d}", name, voices, rng, said
            )
            seconds += sum(len(turn.line.text) * _SECONDS_PER_CHARACTER + _SECONDS_PER_TURN for turn in one.turns)
            number += 1
            yield one


def _conversation(
    level: Level, id: str, set_name: str, voices: Sequence[str], rng: Random, said: set[str]
) -> Conversation:
    pair = rng.sample(voices, 2)
    turns: list[Turn] = []
    names: list[str] = []
    for _ in range(rng.randint(*_EXCHANGES)):
        name, lines = _exchange(level.grammar, set_name, rng, said)
        names.append(name)
        for voice, line in zip(pair, lines, strict=True):
            gap = round(rng.uniform(*_GAP_SECONDS), 2) if turns else 0.0
            turns.append(Turn(line, voice, round(rng.uniform(*level.rates), 2), gap))
    return Conversation(id, set_name, tuple(turns), tuple(names))


def _exchange(grammar: Grammar, set_name: str, rng: Random, said: set[str]) -> tuple[str, tuple[Line, Line]]:
    """An exchange whose lines belong to the set and, as long as the grammar has such ones, are new."""
    share = 0.5 if set_name == "test_word" else 0.0
    drawn, draws = None, 0
    while drawn is None or draws < _MAX_DRAWS:
        one = grammar.draw(rng, share, lambda text: _belongs(text, set_name, grammar))
        if one is not None:
            drawn, draws = one, draws + 1
            sentences = {normalized(line.text) for line in one[1]}
            if said.isdisjoint(sentences):
                said |= sentences
                break
    return drawn


def _belongs(text: str, set_name: str, grammar: Grammar) -> bool:
    unseen = not grammar.held_out_words.isdisjoint(words_of(text))
    if set_name == "test_word":
        return unseen
    return not unseen and set_of(text) == ("test_sentence" if set_name == "test_voice" else set_name)


def set_of(text: str) -> str:
    """The set that a sentence of known words belongs to: "train", "val" or "test_sentence"."""
    place = int.from_bytes(hashlib.sha256(normalized(text).encode()).digest()[:8], "big") % 100
    for name, share in _SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"
