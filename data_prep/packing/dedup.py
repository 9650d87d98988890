"""Finds duplicates among all recordings of a dataset: equal audio, equal text, and turns that sound the same.

Of equal ones, the one with the first recording id (and turn number) is kept, so that the result does not depend on the
order of recordings; of recordings of equal samples, one with given texts before those whose text was recognized.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_prep.config import DedupConfig
from data_prep.reasons import Reason
from data_prep.records import Duplicate
from data_prep.speech.fingerprint import same_sound
from data_prep.speech.text_checks import words

if TYPE_CHECKING:
    from datasketch import LeanMinHash

_SHINGLE_WORDS = 5
_PERMUTATIONS = 128  # of MinHash: the estimate of a similarity of 0.8 has a standard error of 0.035
_SEED = 1


@dataclass
class HeardTurn:
    """A turn that is kept unless it is a duplicate."""

    number: int  # DraftTurn.number
    seconds: float
    fingerprint: list[int]  # TurnScore.fingerprint
    text: str


@dataclass
class HeardRecording:
    id: str
    pcm_sha256: str
    turns: list[HeardTurn]
    annotated: bool = False  # a text was given


def duplicates(recordings: Iterable[HeardRecording], cfg: DedupConfig) -> list[Duplicate]:
    """Recordings and turns to reject, by recording and turn; turns of rejected recordings are not listed.

    `recordings` is iterated once, in any order; only hashes and fingerprints stay in memory (for a million turns of
    8 s, 1.3 GB at the peak, without cfg.text).

    Raises:
        ValueError: two recordings have the same id.
        FileNotFoundError: cfg.text needs a package that is not installed.
    """
    heard = _Heard(cfg)
    for recording in recordings:
        heard.add(recording)
    repeated: dict[str, Duplicate] = {}
    if cfg.exact:
        repeated |= heard.equal_samples()
    if cfg.text:
        repeated |= heard.equal_texts(repeated)
    turns = heard.equal_turns(repeated) if cfg.fingerprint else []
    return sorted([*repeated.values(), *turns], key=lambda row: (row.recording, -1 if row.turn is None else row.turn))


class _Heard:
    """Hashes and fingerprints of all recordings."""

    def __init__(self, cfg: DedupConfig) -> None:
        self.cfg = cfg
        self.hashes: dict[str, str] = {}  # recording -> PCM hash
        self.annotated: set[str] = set()  # recordings
        self.signatures: dict[str, LeanMinHash] = {}  # recording -> of its text
        self.turns: list[tuple[str, int, int, int]] = []  # recording, number, first code, codes
        self.codes = array("I")

    def add(self, recording: HeardRecording) -> None:
        if recording.id in self.hashes:
            raise ValueError(f"recording {recording.id!r} occurs twice; ids must be unique")
        self.hashes[recording.id] = recording.pcm_sha256
        if recording.annotated:
            self.annotated.add(recording.id)
        for turn in recording.turns:
            if self.cfg.fingerprint and turn.fingerprint and turn.seconds >= self.cfg.fingerprint_min_seconds:
                self.turns.append((recording.id, turn.number, len(self.codes), len(turn.fingerprint)))
                self.codes.extend(turn.fingerprint)
        if self.cfg.text:
            spoken = [word for turn in recording.turns for word in words(turn.text)]
            if len(spoken) >= max(self.cfg.text_min_words, _SHINGLE_WORDS):
                self.signatures[recording.id] = _signature(spoken)

    def equal_samples(self) -> dict[str, Duplicate]:
        kept: dict[str, str] = {}
        found = {}
        for name in sorted(self.hashes, key=lambda name: (name not in self.annotated, name)):
            twin = kept.setdefault(self.hashes[name], name)
            if twin != name:
                found[name] = Duplicate(name, None, Reason.duplicate_audio, twin, None, 1.0)
        return found

    def equal_texts(self, repeated: dict[str, Duplicate]) -> dict[str, Duplicate]:
        """In the order of ids, each recording is kept, or is a duplicate of the most similar kept one."""
        if not self.signatures:
            return {}
        from datasketch import MinHashLSH

        index = MinHashLSH(threshold=self.cfg.text_threshold, num_perm=_PERMUTATIONS)
        found = {}
        for name in sorted(self.signatures.keys() - repeated.keys()):
            signature = self.signatures[name]
            likeness = {other: signature.jaccard(self.signatures[other]) for other in index.query(signature)}
            twin = min(likeness, key=lambda other: (-likeness[other], other), default=None)
            if twin is not None and likeness[twin] >= self.cfg.text_threshold:
                found[name] = Duplicate(name, None, Reason.duplicate_text, twin, None, float(likeness[twin]))
            else:
                index.insert(name, signature)
        return found

    def equal_turns(self, repeated: dict[str, Duplicate]) -> list[Duplicate]:
        """In the order of recordings and turns, each turn is kept, or is a duplicate of the most similar kept one."""
        turns = sorted(turn for turn in self.turns if turn[0] not in repeated)
        lengths = np.array([n for *_, n in turns], dtype=np.int64)
        ordered = np.empty(lengths.sum(), dtype=np.uint32)
        heard, place = np.asarray(self.codes), 0
        for _, _, first, n in turns:
            ordered[place : place + n] = heard[first : first + n]
            place += n
        del heard
        self.codes = array("I")  # freed before the search, which needs as much memory
        repeats = same_sound(ordered, lengths, self.cfg.max_bit_error)
        return [
            Duplicate(*turns[i][:2], Reason.duplicate_audio, *turns[twin][:2], 1.0 - error)
            for i, (twin, error) in repeats.items()
        ]


def _signature(spoken: list[str]) -> LeanMinHash:
    """MinHash of the distinct five-word shingles of a text."""
    try:  # optional package
        from datasketch import LeanMinHash, MinHash
    except ImportError:
        raise FileNotFoundError("dedup.text=true needs the package datasketch: pip install datasketch") from None
    shingles = {" ".join(spoken[i : i + _SHINGLE_WORDS]) for i in range(len(spoken) - _SHINGLE_WORDS + 1)}
    minhash = MinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    minhash.update_batch([shingle.encode() for shingle in shingles])
    return LeanMinHash(minhash)
