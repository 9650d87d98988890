"""Groups the encoded turns of a recording into conversations, the samples of the dataset.

Consecutive turns are joined as long as they fit into a row of training. A gap between two turns (a rejected turn that
is not inside a kept one, a long silence, a change of language) ends the conversation, so that speech from before and
after a gap is never joined.
Every turn ends up in exactly one sample, or is rejected with a reason.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from csm.codec import CodecInfo
from csm.data.sample import Event, Sample, Turn
from data_prep.config import ConversationConfig
from data_prep.reasons import Reason
from data_prep.records import (
    UNKNOWN_LANGUAGE,
    DraftTurn,
    Encoded,
    EncodedTurn,
    Recording,
    Rejection,
    Scores,
    Turns,
    TurnScore,
    Word,
)

BYTES_PER_TOKEN = 3.2
"""UTF-8 bytes of text per token of a Llama-3-like tokenizer: an estimate, since data preparation has no tokenizer."""

TURN_OVERHEAD = 6
"""Positions of a turn without text and frames (csm/frames.py): BOS, "[", "0", "]", EOS, and the end-of-speech frame."""

_SCORES = (  # of TurnScore
    "lufs", "clipped", "bandwidth", "ovrl", "sig", "bak", "music", "cer", "half_similarity", "speaker_similarity",
)  # fmt: skip
_RECOGNITION = ("lang_prob", "avg_logprob", "no_speech_prob", "compression_ratio")  # of DraftTurn


@dataclass(frozen=True)
class EncodedRecording:
    """A recording and the results of the stages for it."""

    recording: Recording
    turns: Turns
    scores: Scores | None
    encoded: Encoded


@dataclass(frozen=True)
class _Piece:
    """A turn that is kept, with the results of the stages for it."""

    draft: DraftTurn
    encoded: EncodedTurn
    score: TurnScore | None
    loss: bool

    @property
    def seconds(self) -> float:
        return self.draft.end - self.draft.start

    @property
    def positions(self) -> int:
        return positions_of(self.draft.text, self.encoded.frames)


def conversations(
    given: EncodedRecording,
    rejections: Mapping[int, Rejection],
    codec: CodecInfo,
    split: str,
    prep: str,
    cfg: ConversationConfig,
    shift: int = 0,
) -> tuple[list[Sample], dict[int, Rejection]]:
    """Returns the conversations of a recording, in order, and the rejections of its turns, by number.

    A turn is rejected here because of its overlap, or along with its conversation, if that is too short or contains no
    turn to predict.

    Args:
        rejections: of turns, from limits and duplicates; those of stages are added here.
        split: "train" or "val", see `split_of`.
        prep: hash of the options that the recording was prepared with.
        shift: which of the encodings of its turns.
    """
    rejected = {**stage_rejections(given), **rejections}
    encoded = {turn.number: turn for turn in given.encoded.turns if turn.shift == shift}
    scores = {turn.number: turn for turn in given.scores.turns} if given.scores else {}
    pieces: list[_Piece | None] = []
    covered = 0.0  # up to where a kept turn goes on, whatever is said meanwhile
    for draft in given.turns.turns:
        rejection = rejected.get(draft.number) or _too_much_overlap(draft, cfg)
        if rejection is None:
            pieces.append(_piece(draft, encoded[draft.number], scores.get(draft.number), cfg))
            covered = max(covered, draft.end)
            continue
        rejected[draft.number] = rejection
        # what is said during a kept turn does not interrupt the conversation, be it a backchannel or not
        if rejection.reason != Reason.backchannel and draft.end > covered:
            pieces.append(None)
    samples: list[Sample] = []
    for conversation in _divide(pieces, cfg):
        rejection = _rejection(conversation, cfg)
        if rejection:
            rejected |= dict.fromkeys((piece.draft.number for piece in conversation), rejection)
        else:
            key = f"{key_stem(given.recording)}-{len(samples):05d}" + (f"-s{shift}" if shift else "")
            samples.append(_sample(key, conversation, given, codec, split, prep))
    for sample, following in pairwise(samples):
        sample.next, following.prev = following.key, sample.key
    return samples, rejected


def stage_rejections(given: EncodedRecording) -> dict[int, Rejection]:
    """Rejections of turns by the stages, by the number of the turn."""
    recording, turns = given.recording, {turn.number: turn for turn in given.turns.turns}
    rejected = {
        number: turn.rejection.located(recording, "turns", turn) for number, turn in turns.items() if turn.rejection
    }
    for rejection in given.encoded.rejected:
        assert rejection.turn is not None
        rejected[rejection.turn] = rejection.located(recording, "encode", turns[rejection.turn])
    return rejected


def split_of(group: str, split: str | None, val_fraction: float, seed: int) -> str:
    """The given split, or one drawn from the hash of the group, so that a group is never in both splits."""
    if split:
        return split
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8], "big") / 2**64
    return "val" if draw < val_fraction else "train"


def positions_of(text: str, frames: int) -> int:
    """Estimated number of positions that a turn takes in a training row."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN) + TURN_OVERHEAD + frames


def key_stem(recording: Recording) -> str:
    """The prefix of the keys of a recording's samples: readable, and unique by its hash."""
    name = recording.id.removeprefix(recording.source + "/")
    digest = hashlib.sha256(recording.id.encode()).hexdigest()[:16]
    return f"{slug(recording.source, 20)}-{slug(name, 32)}-{digest}"


def number_speakers(speakers: list[str | int]) -> list[int]:
    """Numbers of the speakers of a conversation's turns: integers are kept; names are numbered by order of appearance.

    If both kinds occur, all are numbered by order of appearance.
    """
    if all(isinstance(speaker, int) for speaker in speakers):
        return [int(speaker) for speaker in speakers]
    order = list(dict.fromkeys(speakers))
    return [order.index(speaker) for speaker in speakers]


def slug(name: str, length: int) -> str:
    """`name` with only the characters a-z, 0-9, _ and -, at most `length` of them."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:length] or "x"


# --------------------------------------------------------------------------------------------- joining turns


def _overlap_share(draft: DraftTurn) -> float:
    """Share of the turn that another speaker talks over; 0 if it is not known, as no limit is broken then."""
    return (draft.overlap or 0.0) / (draft.end - draft.start)


def _too_much_overlap(draft: DraftTurn, cfg: ConversationConfig) -> Rejection | None:
    share = _overlap_share(draft)
    if cfg.max_overlap is None or share <= cfg.max_overlap:
        return None
    message = f"other speech overlaps {share:.2f} of it, more than conversation.max_overlap={cfg.max_overlap}"
    return Rejection(reason=Reason.overlap, message=message)


def _piece(draft: DraftTurn, encoded: EncodedTurn, score: TurnScore | None, cfg: ConversationConfig) -> _Piece:
    overlapped = cfg.context_overlap is not None and _overlap_share(draft) > cfg.context_overlap
    ovrl = score.ovrl if score else None
    poor = cfg.context_ovrl is not None and ovrl is not None and ovrl < cfg.context_ovrl
    return _Piece(draft, encoded, score, loss=not (overlapped or poor))


def _divide(pieces: list[_Piece | None], cfg: ConversationConfig) -> Iterator[list[_Piece]]:
    """Joins consecutive turns up to the limits; None ends a conversation. A turn beyond a limit stays alone."""
    current: list[_Piece] = []
    for piece in pieces:
        if current and (piece is None or not _joins(current, piece, cfg)):
            yield current
            current = []
        if piece:
            current.append(piece)
    if current:
        yield current


def _joins(conversation: list[_Piece], piece: _Piece, cfg: ConversationConfig) -> bool:
    joined = [*conversation, piece]
    return (
        len(joined) <= cfg.max_turns
        and sum(p.seconds for p in joined) <= cfg.max_seconds
        and sum(p.positions for p in joined) <= cfg.max_seq_len
        and _gap(conversation, piece) <= cfg.max_gap_seconds
        and len({p.draft.lang for p in joined} - {None}) <= 1
    )


def _gap(conversation: list[_Piece], piece: _Piece) -> float:
    """Silence before a turn, in seconds; negative if it starts before all earlier turns have ended."""
    return piece.draft.start - max(earlier.draft.end for earlier in conversation)


def _rejection(conversation: list[_Piece], cfg: ConversationConfig) -> Rejection | None:
    seconds = sum(piece.seconds for piece in conversation)
    if len(conversation) < cfg.min_turns or seconds < cfg.min_seconds:
        limits = f"conversation.min_turns={cfg.min_turns}, conversation.min_seconds={cfg.min_seconds}"
        message = f"its conversation has {len(conversation)} turns and {seconds:.2f} s of speech; {limits}"
        return Rejection(reason=Reason.short_conversation, message=message)
    if not any(piece.loss for piece in conversation):
        message = "no turn of its conversation is good enough to be predicted"
        return Rejection(reason=Reason.context_only, message=message)
    return None


# ------------------------------------------------------------------------------------------------------ samples


def _sample(key: str, pieces: list[_Piece], given: EncodedRecording, codec: CodecInfo, split: str, prep: str) -> Sample:
    recording = given.recording
    ids = [p.draft.speaker if p.draft.speaker_id is None else p.draft.speaker_id for p in pieces]
    numbers = number_speakers(ids)
    turns, frame = [], 0
    for i, (piece, speaker) in enumerate(zip(pieces, numbers, strict=True)):
        gap = _gap(pieces[:i], piece) if i else 0.0
        turns.append(_turn(piece, speaker, frame, gap))
        frame += piece.encoded.frames
    lang, lang_prob = _language(pieces, recording)
    bandwidths = [turn.quality["bandwidth"] for turn in turns if "bandwidth" in turn.quality]
    return Sample(
        key=key,
        source=recording.source,
        recording=recording.id,
        group=recording.group,
        split=split,
        lang=lang,
        licence=recording.licence,
        codec=codec,
        turns=turns,
        codes=np.concatenate([_codes(piece.encoded, codec) for piece in pieces], axis=1),
        audio=recording.audio,
        lang_prob=lang_prob,
        sample_rate=recording.sample_rate,
        channels=recording.channels,
        bandwidth=median(bandwidths) if bandwidths else None,
        events=_events(pieces, numbers, given),
        prep=prep,
    )


def _turn(piece: _Piece, speaker: int, frame: int, gap: float) -> Turn:
    draft = piece.draft
    return Turn(
        speaker,
        draft.text,
        draft.start,
        draft.end,
        frame,
        piece.encoded.frames,
        loss=piece.loss,
        channel=draft.channel,
        gap=round(gap, 3),
        overlap=None if draft.overlap is None else round(draft.overlap, 3),
        words=[_word(word) for word in draft.words] or None,
        quality=_measures(piece),
    )


def _word(word: Word) -> list[Any]:
    return [word.text, round(word.start, 2), round(word.end, 2), None if word.prob is None else round(word.prob, 2)]


def _measures(piece: _Piece) -> dict[str, float]:
    """Measures of a turn, by their field names in data_prep/records.py."""
    measured = {name: getattr(piece.score, name) for name in _SCORES} if piece.score else {}
    measured |= {name: getattr(piece.draft, name) for name in _RECOGNITION} | {"gain_db": piece.encoded.gain_db}
    return {name: round(value, 4) for name, value in measured.items() if value is not None}


def _codes(turn: EncodedTurn, codec: CodecInfo) -> np.ndarray:
    """uint16 [K, frames]."""
    return np.frombuffer(turn.codes, "<u2").reshape(codec.num_codebooks, turn.frames)


def _language(pieces: list[_Piece], recording: Recording) -> tuple[str, float | None]:
    """Language of a conversation, the same for all its turns, and its mean probability, weighted by duration."""
    langs = [piece.draft.lang for piece in pieces if piece.draft.lang]
    lang = recording.lang or (langs[0] if langs else UNKNOWN_LANGUAGE)
    known = [(piece.draft.lang_prob, piece.seconds) for piece in pieces if piece.draft.lang_prob is not None]
    seconds = sum(length for _, length in known)
    return lang, round(sum(prob * length for prob, length in known) / seconds, 3) if known else None


def _events(pieces: list[_Piece], numbers: list[int], given: EncodedRecording) -> list[Event]:
    """Events within the conversation. A speaker without a turn in it gets a new number."""
    start, end = pieces[0].draft.start, max(piece.draft.end for piece in pieces)
    known = {piece.draft.speaker: number for piece, number in zip(pieces, numbers, strict=True)}
    events = []
    for event in given.turns.events:
        if start <= event.time < end:
            speaker = known.setdefault(event.speaker, max(known.values()) + 1)
            events.append(Event(round(event.time, 3), speaker, event.kind, event.text))
    return events
