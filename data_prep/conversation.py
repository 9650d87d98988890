"""Encoded turns of a recording -> conversations, the samples of the dataset."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from csm.codec import CodecInfo
from csm.config import DataPrepConfig
from csm.data.sample import Sample, Turn
from data_prep.encode import EncodedTurn
from data_prep.manifest import Recording


def split_of(recording: Recording, val_fraction: float, seed: int) -> str:
    """The recording's own split, else one drawn from the hash of its group: a group is never on both sides."""
    if recording.split:
        return recording.split
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{recording.group}".encode()).digest()[:8], "big") / 2**64
    return "val" if draw < val_fraction else "train"


def split_conversations(turns: list[EncodedTurn | None], max_seconds: float, max_turns: int) -> list[list[EncodedTurn]]:
    """Divides consecutive turns into conversations of at most `max_seconds` of speech and `max_turns` turns.

    A rejected turn (None) ends a conversation: what was said before and after it is never joined. A single turn
    longer than `max_seconds` is a conversation of its own.
    """
    conversations: list[list[EncodedTurn]] = []
    current: list[EncodedTurn] = []
    seconds = 0.0
    for turn in turns:
        length = turn.end - turn.start if turn else 0.0
        if current and (turn is None or len(current) == max_turns or seconds + length > max_seconds):
            conversations.append(current)
            current, seconds = [], 0.0
        if turn:
            current.append(turn)
            seconds += length
    return [*conversations, current] if current else conversations


def number_speakers(speakers: list[str | int]) -> list[int]:
    """Speakers of a conversation's turns as stored: whole numbers as they are, names by order of appearance.

    Where both kinds occur, all are numbered by order of appearance.
    """
    if all(isinstance(speaker, int) for speaker in speakers):
        return [int(speaker) for speaker in speakers]
    order = list(dict.fromkeys(speakers))
    return [order.index(speaker) for speaker in speakers]


def make_samples(
    recording: Recording, turns: list[EncodedTurn | None], codec: CodecInfo, cfg: DataPrepConfig
) -> list[Sample]:
    """The conversations of a recording as samples, in order."""
    split = split_of(recording, cfg.val_fraction, cfg.seed)
    # The hash keeps keys apart whose ids look alike once reduced to the characters that keys may have.
    stem = f"{slug(cfg.source, 20)}-{slug(recording.id, 32)}-{hashlib.sha256(recording.id.encode()).hexdigest()[:8]}"
    samples = []
    for number, conversation in enumerate(split_conversations(turns, cfg.max_conversation_seconds, cfg.max_turns)):
        speakers = number_speakers([encoded.turn.speaker for encoded in conversation])
        stored, frame = [], 0
        for encoded, speaker in zip(conversation, speakers, strict=True):
            frames, source = encoded.codes.shape[1], encoded.turn
            turn = Turn(
                speaker, source.text, encoded.start, encoded.end, frame, frames, loss=True, channel=source.channel
            )
            stored.append(turn)
            frame += frames
        samples.append(
            Sample(
                key=f"{stem}-{number:05d}",
                source=cfg.source,
                recording=recording.id,
                group=recording.group,
                split=split,
                lang=cfg.lang,
                licence=cfg.licence,
                codec=codec,
                turns=stored,
                codes=np.concatenate([encoded.codes for encoded in conversation], axis=1),
                audio=recording.audio,
            )
        )
    return samples


def slug(name: str, length: int) -> str:
    """`name` reduced to a-z, 0-9, _ and -, at most `length` characters."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:length] or "x"
