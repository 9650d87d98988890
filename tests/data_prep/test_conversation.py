import numpy as np
import pytest
from data_prep.encode import EncodedTurn
from data_prep.manifest import AnnotatedTurn, Recording

from data_prep.conversation import number_speakers, slug, split_conversations, split_of


def turns(*lengths: float | None) -> list[EncodedTurn | None]:
    """Turns of these lengths in seconds, half a second apart; None: rejected."""
    made, start = [], 0.0
    for number, length in enumerate(lengths):
        annotated = AnnotatedTurn(number, "x", "text", start, None, None)
        made.append(length and EncodedTurn(annotated, start, start + length, np.ones((3, 7), np.uint16)))
        start += (length or 2.0) + 0.5
    return made


def numbers(conversations: list[list[EncodedTurn]]) -> list[list[int]]:
    return [[encoded.turn.number for encoded in conversation] for conversation in conversations]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((1, 2, 3), [[0, 1, 2]]),
        ((4, 3, 4, 2, 1), [[0, 1], [2, 3, 4]]),  # at most 8 s of speech
        ((1, 1, 1, 1, 1), [[0, 1, 2, 3], [4]]),  # at most 4 turns
        ((1, None, 1, 1), [[0], [2, 3]]),  # neighbours of a rejected turn are not joined
        ((None, None, 1, None), [[2]]),
        ((1, 9, 1), [[0], [1], [2]]),  # longer than the limit: alone
        ((None,), []),
    ],
)
def test_division_into_conversations(lengths, expected):
    assert numbers(split_conversations(turns(*lengths), max_seconds=8.0, max_turns=4)) == expected


def test_names_are_numbered_by_appearance_and_numbers_kept():
    assert number_speakers(["bo", "al", "bo", "cy"]) == [0, 1, 0, 2]
    assert number_speakers([1, 0, 1]) == [1, 0, 1]
    assert number_speakers([5, "al", 5]) == [0, 1, 0]


def test_split_keeps_groups_together_and_follows_the_manifest(tmp_path):
    def recording(name: str, group: str, split: str | None = None) -> Recording:
        return Recording(name, name, tmp_path / name, group, split, [])

    shows = [f"show {n}" for n in range(2000)]
    drawn = {show: split_of(recording("a", show), 0.2, seed=3) for show in shows}
    assert 0.17 < sum(split == "val" for split in drawn.values()) / 2000 < 0.23
    assert all(split_of(recording("b", show), 0.2, seed=3) == drawn[show] for show in shows)
    assert split_of(recording("a", shows[0], "val"), 0.0, seed=3) == "val"
    assert split_of(recording("a", shows[0]), 0.0, seed=3) == "train"


def test_slug_has_only_key_characters():
    assert slug("Show 7/Ep.12 (café)", 32) == "show-7-ep-12-caf"
    assert slug("...", 32) == "x"
