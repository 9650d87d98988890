"""How the codes of a frame lie over positions, for the layouts of `model.layout`.

The place of a frame is that of its code 0. From there:

            code k lies at    the next frame is at    a turn of n frames and its end takes
    depth   place             place + 1               n + 1 positions
    delay   place + k         place + 1               n + 1 + K-1 positions
    flat    place + k         place + K               (n + 1) K positions

delay, a turn of three frames (a to c, E = end), K = 3:      flat:

    codebook 0    a0 b0 c0 E0 .  .                            a0 .  .  b0 .  .  c0 .  .  E0 .  .
    codebook 1    .  a1 b1 c1 E1 .                            .  a1 .  .  b1 .  .  c1 .  .  E1 .
    codebook 2    .  .  a2 b2 c2 E2                           .  .  a2 .  .  b2 .  .  c2 .  .  E2

What is present at position p is predicted from the state at p-1. Text stays as it is, and no position holds codes of
two turns. delay is the pattern of MusicGen (arXiv:2306.05284), flat that of AudioLM's stages (arXiv:2209.03143).
"""

from __future__ import annotations

import torch
from torch import Tensor

from csm.config import CodeLayout
from csm.frames import Frames, TurnTokens


def frame_stride(layout: CodeLayout, num_codebooks: int) -> int:
    """Positions from the place of a frame to that of the next one."""
    return num_codebooks if layout is CodeLayout.flat else 1


def audio_positions(frames: int, layout: CodeLayout, num_codebooks: int) -> int:
    """Positions of `frames` consecutive frames of a turn, its end-of-speech frame counted as one of them."""
    codes = 1 if layout is CodeLayout.depth else num_codebooks  # positions of a single frame
    return (frames - 1) * frame_stride(layout, num_codebooks) + codes


def turn_positions(turn: TurnTokens, layout: CodeLayout) -> int:
    """Positions of a turn, its text included."""
    if turn.codes is None:
        return len(turn.text)
    codebooks, frames = turn.codes.shape
    return len(turn.text) + audio_positions(frames + 1, layout, codebooks)


def by_frame(entries: Tensor, layout: CodeLayout) -> Tensor:
    """A view of `entries [..., S, K]` (codes, or their mask) by the place of the frame that they belong to.

    Returns [..., S', K], S' = S, or without a depth decoder S - K + 1: element [p, k] is entry k of the frame at p,
    where p is the place of a frame; elsewhere, what lies there in the same way. Writing to it writes to `entries`.
    """
    if layout is CodeLayout.depth:
        return entries
    windows = entries.unfold(-2, entries.shape[-1], 1)  # [..., S', K, K]: [p, k, i] is entry k of position p + i
    return windows.diagonal(dim1=-2, dim2=-1)


def arranged(document: Frames, layout: CodeLayout) -> Frames:
    """`document`, which is laid out with one position for each frame (csm/frames.py), in another layout.

    What is hidden from the input stays hidden. `targets` and `eos` are True at the places of their frames.
    """
    if layout is CodeLayout.depth:
        return document
    codebooks = document.tokens.shape[1] - 1
    text = document.mask[:, codebooks]
    positions = torch.where(text, 1, frame_stride(layout, codebooks))
    positions[document.eos] = audio_positions(1, layout, codebooks)  # the next turn begins after its last code
    places = positions.cumsum(0) - positions
    length = int(positions.sum())

    def spread(entries: Tensor) -> Tensor:
        result = entries.new_zeros(length, codebooks + 1)
        result[places[text], codebooks] = entries[text, codebooks]
        by_frame(result[:, :codebooks], layout)[places[~text]] = entries[~text, :codebooks]
        return result

    def marked(flags: Tensor) -> Tensor:
        result = flags.new_zeros(length)
        result[places] = flags
        return result

    return Frames(spread(document.tokens), spread(document.mask), marked(document.targets), marked(document.eos))
