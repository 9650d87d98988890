"""Texts of the corpus: grammars, sets, and what a seed fixes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from csm.text import HFTokenizer
from experiments.corpus.command import main
from experiments.corpus.grammar import Grammar, read_grammar, words_of
from experiments.corpus.levels import LEVELS
from experiments.corpus.numbers import DRAWN, spelled
from experiments.corpus.plan import Conversation, conversations, normalized, set_of
from experiments.corpus.tokenizer import fit_tokenizer, write_tokenizer

DESK = replace(LEVELS["desk"], small=3)


def sentences(planned: list[Conversation], *sets: str) -> list[str]:
    return [normalized(turn.line.text) for one in planned if one.set in sets for turn in one.turns]


@pytest.fixture(scope="module")
def planned() -> list[Conversation]:
    return list(conversations(DESK, seed=0, hours=0.5))


def test_a_seed_fixes_everything_and_fewer_hours_are_the_beginning_of_more(planned: list[Conversation]) -> None:
    shorter = list(conversations(DESK, seed=0, hours=0.1))
    assert 9 < len(shorter) < len(planned)
    assert shorter == planned[: len(shorter)]
    other = list(conversations(DESK, seed=1, hours=0.1))
    assert not set(sentences(other, "train")) <= set(sentences(planned, "train"))


def test_no_held_out_sentence_is_in_train_and_none_is_said_twice(planned: list[Conversation]) -> None:
    train, held_out = sentences(planned, "train"), sentences(planned, "val", "test_sentence", "test_word")
    assert not set(train) & set(held_out)
    assert not set(sentences(planned, "val")) & set(sentences(planned, "test_sentence"))
    assert len(set(train)) == len(train) > 500


def test_a_corpus_of_another_seed_never_trains_on_the_test_sentences(planned: list[Conversation]) -> None:
    held_out = sentences(planned, "test_sentence")
    assert {set_of(text) for text in held_out} == {"test_sentence"}
    assert {set_of(text) for text in sentences(list(conversations(DESK, 5, 0.1)), "train")} == {"train"}


def test_words_are_held_out_of_all_texts_but_those_of_their_own_set(planned: list[Conversation]) -> None:
    unseen = DESK.grammar.held_out_words
    assert {"edinburgh", "seventeen", "umbrellas"} <= unseen
    for text in sentences(planned, "test_word"):
        assert unseen & set(text.split()), text
    for text in sentences(planned, "train", "val", "test_sentence"):
        assert not unseen & set(text.split()), text


def test_conversations_are_of_two_voices_in_turn(planned: list[Conversation]) -> None:
    for one in planned:
        voices = [turn.voice for turn in one.turns]
        assert 4 <= len(voices) <= 10
        assert voices[::2] == [voices[0]] * len(voices[::2]) and voices[1::2] == [voices[1]] * len(voices[1::2])
        assert {*voices} == {"joe", "slt"}
        assert all(0.2 <= turn.gap <= 0.5 for turn in one.turns[1:])


def test_the_voices_of_test_voice_are_in_no_other_set() -> None:
    level = replace(LEVELS["open"], small=1)
    voices: dict[bool, set[str]] = {False: set(), True: set()}
    for one in conversations(level, seed=0, hours=0.2):
        voices[one.set == "test_voice"] |= {turn.voice for turn in one.turns}
    assert voices[True] == {"kore", "puck"} and len(voices[False]) >= 6
    assert not voices[True] & voices[False]


@pytest.mark.parametrize("level", LEVELS)
def test_every_template_can_be_filled_with_known_and_with_held_out_words(level: str) -> None:
    grammar = LEVELS[level].grammar
    for exchange in grammar.exchanges:
        for question in exchange.questions:
            for answer in exchange.answers:
                one = Grammar(
                    [replace(exchange, questions=[question], answers=[answer])], grammar.classes, grammar.drawn
                )
                for share in (0.0, 1.0):
                    drawn = one.draw(Random(0), share, lambda text: True)
                    assert drawn is not None
                    for line in drawn[1]:
                        assert re.fullmatch(r"[A-Z][A-Za-z' ,]+[A-Za-z][.?]( [A-Z][A-Za-z' ,]+[.?])?", line.text)


def test_desk_has_about_300_words() -> None:
    words = {word for one in conversations(DESK, 0, 2.0) for turn in one.turns for word in words_of(turn.line.text)}
    assert 250 <= len(words) <= 320


def test_answers_know_their_questions(planned: list[Conversation]) -> None:
    values = {spelled(number): number for number in range(100)}
    sums = 0
    for one in planned:
        for name, question, answer in zip(one.exchanges, one.turns[::2], one.turns[1::2], strict=True):
            asked = re.fullmatch(r"(?:What is|How much is) ([a-z ]+) plus ([a-z ]+)\?", question.line.text)
            if name == "sum":
                assert asked is not None
                sums += 1
                said = answer.line.text.rstrip(".").partition(" is ")[2]
                assert values[said] == values[asked[1]] + values[asked[2]]
    assert sums > 3


def test_homographs_are_written_alike_and_said_differently(tmp_path: Path) -> None:
    path = tmp_path / "grammar.txt"
    path.write_text("[read]\n? Did you [read=red] it?\n! I will [read=reed]\n    it to {name}.\n@name: Ann\n")
    drawn = read_grammar(path, DRAWN, frozenset()).draw(Random(0), 0.0, lambda text: True)
    assert drawn is not None
    assert [line.text for line in drawn[1]] == ["Did you read it?", "I will read it to Ann."]
    assert [line.spoken for line in drawn[1]] == ["Did you red it?", "I will reed it to Ann."]
    path.write_text("[read]\nDid you?\n")
    with pytest.raises(ValueError, match="'Did you\\?' begins with none of"):
        read_grammar(path, DRAWN, frozenset())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["level=desk"], "no output given; usage: python -m experiments.corpus level=desk output=DIR"),
        (["level=desks", "output=x"], "level=desks is not known; levels are desk, voices, open"),
        (["out=x"], "'out=x' is not an option; options are hours, level, output, seed, workers"),
        (["output=x", "hours=0"], "workers must be 1 or more, and hours more than 0"),
        (["output=x", "seed=a"], "Value 'a' of type 'str' could not be converted to Integer"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main([f"output={tmp_path}"])
    assert "is not empty and holds no corpus.json; choose another output" in capsys.readouterr().err
    (tmp_path / "corpus.json").write_text('{"level": "desk", "seed": 3, "voices": ["joe", "slt"]}')
    with pytest.raises(SystemExit, match="2"):
        main([f"output={tmp_path}"])
    assert "holds another corpus (seed=3); choose another output" in capsys.readouterr().err


def test_its_tokenizer_has_known_words_as_tokens_and_spells_unknown_ones(
    planned: list[Conversation], tmp_path: Path
) -> None:
    texts = [turn.line.text for one in planned if one.set == "train" for turn in one.turns]
    assert write_tokenizer(texts, tmp_path) <= 4096
    tokenizer = HFTokenizer.load(tmp_path)
    first, rest = tokenizer.encode("Where is"), tokenizer.encode(" is")
    assert len(first) == 2 and first[1:] == rest  # a word is the same token wherever it stands after a space
    turns = [tokenizer.encode_turn(text, 1) for text in texts]
    words = sum(len(text.split()) for text in texts)
    marks = sum(not character.isalnum() and character != " " for text in texts for character in text)
    whole = words + marks + 5 * len(texts)  # BOS, "[", "1", "]", EOS
    assert whole <= sum(map(len, turns)) < 1.01 * whole  # a word that occurs once may be spelled
    assert len(tokenizer.encode(" Ouagadougou")) > 3
    assert fit_tokenizer(texts).identity == tokenizer.identity
