"""Turns of many recordings -> codes, in codec batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from csm.codec import Codec, encode_turns
from data_prep.cut import CutTurn
from data_prep.manifest import AnnotatedTurn, Recording
from data_prep.rejects import Reason, Rejects


@dataclass
class EncodedTurn:
    """A turn and its codes, uint16 [K, T]."""

    turn: AnnotatedTurn
    start: float  # seconds in the recording
    end: float
    codes: np.ndarray


def encode_recordings(
    recordings: Iterable[tuple[Recording, list[CutTurn | None]]], codec: Codec, batch_seconds: float, rejects: Rejects
) -> Iterator[tuple[Recording, list[EncodedTurn | None]]]:
    """Encodes each turn on its own, recordings in the order given; a rejected turn stays None.

    Recordings are gathered until they hold a few codec batches of audio, so that short turns share batches.
    """
    gathered: list[tuple[Recording, list[CutTurn | None]]] = []
    samples = 0
    for recording, turns in recordings:
        gathered.append((recording, turns))
        samples += sum(turn.waveform.numel() for turn in turns if turn)
        if samples >= 4 * batch_seconds * codec.sample_rate:
            yield from _encode(gathered, codec, batch_seconds, rejects)
            gathered, samples = [], 0
    yield from _encode(gathered, codec, batch_seconds, rejects)


def _encode(
    gathered: list[tuple[Recording, list[CutTurn | None]]], codec: Codec, batch_seconds: float, rejects: Rejects
) -> Iterator[tuple[Recording, list[EncodedTurn | None]]]:
    waveforms = [turn.waveform for _, turns in gathered for turn in turns if turn]
    all_codes = iter(encode_turns(codec, waveforms, batch_seconds))
    for recording, turns in gathered:
        encoded: list[EncodedTurn | None] = []
        for cut in turns:
            if cut is None:
                encoded.append(None)
                continue
            codes = next(all_codes).numpy().astype(np.uint16)
            if not codes.any(axis=0).all():
                rejects.add_turn(recording, cut.turn, Reason.end_frame, "a frame has only zero codes (end of speech)")
                encoded.append(None)
                continue
            encoded.append(EncodedTurn(cut.turn, cut.start, cut.end, codes))
        yield recording, encoded
