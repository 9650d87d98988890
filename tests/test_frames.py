"""The layout that everything else trusts, written out."""

from __future__ import annotations

import pytest
import torch

from csm.frames import TurnTokens, conversation_frames, is_eos_frame


def test_layout_of_two_turns_and_an_open_one():
    turns = [
        TurnTokens([9, 0, 8], torch.tensor([[1, 2], [3, 0]])),  # text id 0 and code 0 are real
        TurnTokens([7], torch.tensor([[5], [6]]), loss=False),
        TurnTokens([4, 3], None),
    ]
    frames = conversation_frames(turns, num_codebooks=2)
    assert frames.tokens.tolist() == [
        [0, 0, 9],
        [0, 0, 0],
        [0, 0, 8],
        [1, 3, 0],
        [2, 0, 0],
        [0, 0, 0],  # end of speech
        [0, 0, 7],
        [5, 6, 0],
        [0, 0, 0],
        [0, 0, 4],
        [0, 0, 3],
    ]
    text, audio = [False, False, True], [True, True, False]
    assert frames.mask.tolist() == [text] * 3 + [audio] * 3 + [text] + [audio] * 2 + [text] * 2
    assert torch.nonzero(frames.targets).flatten().tolist() == [3, 4, 5]
    assert torch.nonzero(frames.eos).flatten().tolist() == [5, 8]


def test_end_of_speech_needs_every_code():
    assert is_eos_frame(torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0]])).tolist() == [True, False, False]


def test_bad_turns_are_refused():
    with pytest.raises(ValueError, match="turn 1 has 3 codebooks, the model reads 2"):
        conversation_frames([TurnTokens([1], None), TurnTokens([1], torch.zeros(3, 4))], 2)
    with pytest.raises(ValueError, match="turn 0 has no text"):
        conversation_frames([TurnTokens([], torch.zeros(2, 4))], 2)
