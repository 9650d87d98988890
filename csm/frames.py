"""The layout of the model's input: turns -> frames. No other module knows it; csm/arrangement.py spreads the codes of
a frame over several positions for the models of other layouts, which are built from this one.

A position is one row of `tokens [T, K+1]`: either one text token (column K) or one audio frame (columns 0..K-1).
A turn is

    BOS "[speaker]text" EOS        text positions, mask only in column K
    frame_0 ... frame_{n-1}        audio frames, mask in columns 0..K-1
    all-zero frame                 end of speech, mask in columns 0..K-1

and a conversation is its turns one after another. Id 0 is a real code and a real text id, so `mask` says
which entries of a position are present, never zeros. Same layout as Sesame's generator
(SesameAILabs/csm `generator.py`) and Hugging Face's CsmProcessor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TurnTokens:
    """One turn, tokenized: `text` ids with BOS/EOS, `codes` int64 `[K, n]` or None while it is to be generated."""

    text: list[int]
    codes: Tensor | None
    loss: bool = True  # False: context only, its frames are read but not predicted

    @property
    def num_positions(self) -> int:
        return len(self.text) + (0 if self.codes is None else self.codes.shape[1] + 1)


@dataclass
class Frames:
    """A conversation as positions.

    tokens:  int64 [T, K+1]
    mask:    bool  [T, K+1], which entries are present
    targets: bool  [T], positions whose frame the model is trained to predict (from the position before)
    eos:     bool  [T], positions that hold an end-of-speech frame
    """

    tokens: Tensor
    mask: Tensor
    targets: Tensor
    eos: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]


def conversation_frames(turns: list[TurnTokens], num_codebooks: int, fewer_codebooks: bool = False) -> Frames:
    """Lays out turns as frames; a turn without codes contributes its text only.

    fewer_codebooks: codes may be those of the first codebooks; the others are absent from its frames.
    Raises ValueError for codes with another number of codebooks, and for a turn without text, since its first
    frame would have nothing to be predicted from.
    """
    length = sum(turn.num_positions for turn in turns)
    tokens = torch.zeros(length, num_codebooks + 1, dtype=torch.int64)
    mask = torch.zeros(length, num_codebooks + 1, dtype=torch.bool)
    targets = torch.zeros(length, dtype=torch.bool)
    eos = torch.zeros(length, dtype=torch.bool)
    start = 0
    for number, turn in enumerate(turns):
        if not turn.text:
            raise ValueError(f"turn {number} has no text tokens; every turn begins with BOS [speaker]text EOS")
        end = start + len(turn.text)
        tokens[start:end, num_codebooks] = torch.tensor(turn.text)
        mask[start:end, num_codebooks] = True
        start = end
        if turn.codes is None:
            continue
        codebooks, frames = turn.codes.shape
        if codebooks != num_codebooks and not (fewer_codebooks and codebooks < num_codebooks):
            raise ValueError(f"turn {number} has {codebooks} codebooks, the model reads {num_codebooks}")
        end = start + frames  # the position at `end` stays all zero: end of speech
        tokens[start:end, :codebooks] = turn.codes.T.to(torch.int64)
        mask[start:end, :codebooks] = True
        mask[end, :num_codebooks] = True
        targets[start : end + 1] = turn.loss
        eos[end] = True
        start = end + 1
    return Frames(tokens, mask, targets, eos)


def newest_turns(turns: list[TurnTokens], positions: int) -> list[TurnTokens]:
    """The newest of `turns` that take at most `positions` positions together; older ones are left out as a whole."""
    kept: list[TurnTokens] = []
    for turn in reversed(turns):
        positions -= turn.num_positions
        if positions < 0:
            break
        kept.insert(0, turn)
    return kept


def is_eos_frame(codes: Tensor) -> Tensor:
    """Whether frames `[..., K]` are end-of-speech frames: every code 0 (code 0 alone is a real code). bool `[...]`."""
    return (codes == 0).all(dim=-1)
