"""A sample: one conversation as it is stored in a shard.

In the tar a sample is two members with the same key: `<key>.codes.npy` (uint16 `[K, T]`, the frames of all turns, one
turn after another) and `<key>.json` (everything else). Text is stored raw, never as token ids, and each turn is encoded
separately, from a fresh codec state. Only this module knows the content of the two members.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from csm.codec.base import CodecInfo

SCHEMA_VERSION = 3
READABLE_SCHEMAS = (2, SCHEMA_VERSION)
READABLE = " and ".join(str(version) for version in READABLE_SCHEMAS)
CODES_MEMBER = "codes.npy"
JSON_MEMBER = "json"
REMEDY = "prepare the dataset again (python -m data_prep ... overwrite=true)"

# WebDataset splits the name of a member at its first dot and lower-cases it: a key has neither dots nor capitals.
_KEY = re.compile(r"[a-z0-9_-]{1,80}")
# Field names of schema 2, which can still be read.
_RENAMED = {"spk": "speaker", "f0": "start_frame", "nf": "num_frames", "q": "quality"}
# Derived from the turns, but stored for programs that read the json members without this module.
_DERIVED = ("start", "end", "num_frames", "num_speakers")


@dataclass
class Turn:
    """An uninterrupted utterance of one speaker. Times are seconds in the recording."""

    speaker: int  # number of the speaker within the conversation
    text: str
    start: float
    end: float
    start_frame: int  # its first frame in `Sample.codes`
    num_frames: int
    loss: bool = True  # False: used as context only, not predicted
    channel: int | None = None  # of the recording; None: all channels mixed
    gap: float = 0.0  # seconds of silence before it; negative: it begins before the earlier turns end
    overlap: float | None = 0.0  # seconds during which someone else speaks on the same track; None: not known
    words: list[list[Any]] | None = None  # [text, start, end, probability or None] recognized; None: the text was given
    quality: dict[str, float] = field(default_factory=dict)  # measures, see data_prep/packing/conversation.py


@dataclass
class Event:
    """A short utterance in the conversation that is not a turn."""

    time: float  # seconds in the recording
    speaker: int
    kind: str  # "backchannel"
    text: str


@dataclass(eq=False)  # comparing arrays does not give a truth value
class Sample:
    """One conversation."""

    key: str  # unique in the dataset, only a-z 0-9 _ -
    source: str  # name of the collection it comes from
    recording: str  # id of the recording
    group: str  # such as a show or a caller; all samples of a group are in the same split
    split: str  # "train" or "val"
    lang: str
    licence: str
    codec: CodecInfo
    turns: list[Turn]
    codes: np.ndarray = field(repr=False)  # uint16 [K, T]
    audio: str | None = None  # file of the recording, relative to the dataset's `audio_root`
    lang_prob: float | None = None  # from the recognizer; None: the language was given
    sample_rate: int | None = None  # of the recording, Hz
    channels: int | None = None  # of the recording
    bandwidth: float | None = None  # Hz, the highest frequency with content; median over the turns
    events: list[Event] = field(default_factory=list)
    prev: str | None = None  # key of the previous conversation of the recording
    next: str | None = None  # and of the following one
    prep: str = ""  # hash of the options it was prepared with

    @property
    def start(self) -> float:
        """Seconds in the recording."""
        return self.turns[0].start

    @property
    def end(self) -> float:
        return max(turn.end for turn in self.turns)

    @property
    def num_frames(self) -> int:
        return self.codes.shape[1]

    @property
    def num_speakers(self) -> int:
        return len({turn.speaker for turn in self.turns})

    def turn_codes(self, turn: Turn) -> np.ndarray:
        """Codes of one of the turns: int64 `[K, num_frames]`, a copy."""
        return self.codes[:, turn.start_frame : turn.start_frame + turn.num_frames].astype(np.int64)


_STORED = [f.name for f in fields(Sample) if f.name not in ("codec", "turns", "codes", "events")]


def sample_to_members(sample: Sample) -> dict[str, bytes]:
    """The two members of a sample by name; equal samples give equal bytes.

    Raises ValueError if `validate_sample` does, so that no invalid sample is ever written.
    """
    validate_sample(sample, sample.key)
    codes = io.BytesIO()
    np.lib.format.write_array(codes, np.ascontiguousarray(sample.codes, dtype="<u2"), version=(1, 0))
    record: dict[str, Any] = {"schema": SCHEMA_VERSION}
    record |= {name: getattr(sample, name) for name in (*_STORED, *_DERIVED)}
    record["codec"] = sample.codec.to_dict()
    record["turns"] = [vars(turn) for turn in sample.turns]
    record["events"] = [vars(event) for event in sample.events]
    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{sample.key}: holds a number that is not finite ({error})") from error
    return {CODES_MEMBER: codes.getvalue(), JSON_MEMBER: text.encode()}


def sample_from_members(codes_bytes: bytes, json_bytes: bytes, where: str) -> Sample:
    """Inverse of `sample_to_members`.

    `where` names the shard and key in error messages. Raises ValueError if a member cannot be parsed, the schema
    version is not supported, or `validate_sample` rejects the sample.
    """
    record = record_from_member(json_bytes, where)
    try:
        derived = {name: record.pop(name) for name in _DERIVED}
        codec = CodecInfo.from_dict(record.pop("codec"))
        turns = [Turn(**turn) for turn in record.pop("turns")]
        events = [Event(**event) for event in record.pop("events")]
        codes = np.lib.format.read_array(io.BytesIO(codes_bytes), allow_pickle=False)
        sample = Sample(codec=codec, turns=turns, events=events, codes=codes, **record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: cannot be read as a sample ({error}); {REMEDY}") from error
    try:
        validate_sample(sample, where)
    except (TypeError, AttributeError) as error:  # such as a string in place of a number
        raise ValueError(f"{where}: cannot be read as a sample ({error}); {REMEDY}") from error
    for name, value in derived.items():
        if value != getattr(sample, name):
            raise ValueError(f"{where}: says {name} {value}, its turns say {getattr(sample, name)}; {REMEDY}")
    return sample


def turns_from_member(json_bytes: bytes, where: str) -> list[Turn]:
    """The turns in the json member of a sample, not checked against its codes; raises like `sample_from_members`."""
    record = record_from_member(json_bytes, where)
    try:
        return [Turn(**turn) for turn in record["turns"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: cannot be read as a sample ({error}); {REMEDY}") from error


def record_from_member(json_bytes: bytes, where: str) -> dict[str, Any]:
    """The json member of a sample as plain values; only the version is checked. Raises like `sample_from_members`."""
    try:
        record = json.loads(json_bytes)
        version = record.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: its json member is not a sample record ({error!r}); {REMEDY}") from error
    if version not in READABLE_SCHEMAS:
        raise ValueError(f"{where}: has schema version {version}, this program reads {READABLE}; {REMEDY}")
    if version == 2:
        for part in ("turns", "events"):
            record[part] = [_renamed(entry) for entry in record.get(part, [])]
    return record


def _renamed(entry: Any) -> Any:
    return {_RENAMED.get(name, name): value for name, value in entry.items()} if isinstance(entry, dict) else entry


def validate_sample(sample: Sample, where: str) -> None:
    """Raises ValueError, beginning with `where` and ending with the remedy, if the sample is invalid.

    A valid sample has a key of a-z, 0-9, _ and -; codes uint16 `[K, T]` below the codec's codebook size, with no
    all-zero frame (which means end of speech); and at least one turn. The turns cover the codes without gap or overlap,
    have a text, end after they start, and are ordered by their start.
    """

    def reject(problem: str) -> None:
        raise ValueError(f"{where}: {problem}; {REMEDY}")

    codes, codec = sample.codes, sample.codec
    if not _KEY.fullmatch(sample.key):
        reject(f"key {sample.key!r} must be 1 to 80 characters of a-z, 0-9, _ and -")
    if codes.dtype != np.uint16 or codes.ndim != 2 or codes.shape[0] != codec.num_codebooks or codes.shape[1] == 0:
        reject(f"codes are {codes.dtype} {codes.shape}, expected uint16 ({codec.num_codebooks}, frames)")
    if int(codes.max()) >= codec.codebook_size:
        reject(f"code {int(codes.max())} is out of range: {codec.name} has codes 0..{codec.codebook_size - 1}")
    if not sample.turns:
        reject("has no turns")
    frame, previous_start = 0, float("-inf")
    for number, turn in enumerate(sample.turns):
        if turn.start_frame != frame or turn.num_frames <= 0:
            reject(f"turn {number} has frames {turn.start_frame}+{turn.num_frames}, expected them to begin at {frame}")
        frame += turn.num_frames
        if not turn.text.strip():
            reject(f"turn {number} has an empty text")
        if not previous_start <= turn.start < turn.end:
            reject(f"turn {number} has times {turn.start}..{turn.end}, expected start < end and turns in order")
        previous_start = turn.start
    if frame != codes.shape[1]:
        reject(f"turns cover {frame} frames, codes hold {codes.shape[1]}")
    zero_frames = np.flatnonzero(~codes.any(axis=0))
    if len(zero_frames):
        reject(f"frame {zero_frames[0]} is all zeros, which means end of speech")
