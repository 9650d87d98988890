"""Judged utterances: one piece of speech by one system, with what is known about it.

Every evaluation compares the recordings themselves (what the judges say of real speech), the recordings through the
codec (the best the model could do), the model, and controls: the model's speech held against the text and the voice of
another prompt, which says where the scale ends on the other side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from csm.evaluation.wer import DiffWord, WordErrors


class System(Enum):
    ground_truth = "Ground truth"
    codec_resynthesis = "Codec resynthesis"
    codec_16 = "Codec resynthesis, 16 codebooks"
    codec_8 = "Codec resynthesis, 8 codebooks"
    model = "Model"
    control = "Control: other text, other voice"


CODEC_LEVELS = {16: System.codec_16, 8: System.codec_8}
"""Systems that hear only the first codebooks of the recordings."""


class Flag(Enum):
    """A failure of an utterance. It is still scored: an empty output is a transcript without words."""

    empty = "empty output"
    runaway = "no end of speech before the limit"
    repeated = "the same words again and again"
    truncated = "end of the text missing"
    clipped = "clipped"
    too_fast = "much faster than the recording"
    long_transcript = "transcript over twice the reference"


@dataclass(frozen=True)
class Pronounced:
    """Variants of a tested word that both scorers heard; None: undecided, or nothing was said.

    margin:    of the forced choice, nats
    confirmed: whether the word was heard as it should be in the context; True without a context
    """

    word: str
    expected: str
    greedy: str | None
    forced: str | None
    margin: float
    confirmed: bool


@dataclass
class Utterance:
    """Speech of one prompt by one system, with the judges' results. Cosines are None where undefined."""

    prompt: str
    system: System
    seed: int | None  # of the sampling; None for recordings
    cluster: str
    speaker: int
    text: str
    seconds: float
    audio_file: str | None = None  # relative to the report; None: nothing was said
    condition: str = ""  # of the prompt
    turn: int | None = None  # its place in the conversation, from 0
    finish_reason: str | None = None  # of the generation
    context_turns: int | None = None  # turns the model was given
    compute_seconds: float | None = None
    clipped: float = 0.0  # share of the samples beyond full scale
    reference_seconds: float | None = None  # of the recording of the same turn
    flags: list[Flag] = field(default_factory=list)
    reference_words: str | None = None  # normalized
    hypothesis: str | None = None  # as transcribed
    alignment: list[DiffWord] | None = None
    errors: WordErrors | None = None
    leaked: int | None = None  # inserted words that occur in the turns before; None: there are none
    cosine_recording: float | None = None  # with the recording of the same turn
    cosine_earlier: float | None = None  # with the same speaker's earlier turns
    cosine_other: float | None = None  # with the other speakers' turns
    measures: dict[str, float] = field(default_factory=dict)  # results of eval.measures
    prosody: dict[str, float] = field(default_factory=dict)  # distances from the recording of the same turn
    pronounced: Pronounced | None = None  # where a word's pronunciation is tested

    def to_row(self) -> dict[str, Any]:
        """Plain values: a line of utterances.jsonl."""
        return {
            "prompt": self.prompt,
            "condition": self.condition,
            "system": self.system.name,
            "seed": self.seed,
            "cluster": self.cluster,
            "speaker": self.speaker,
            "turn": self.turn,
            "text": self.text,
            "reference_normalized": self.reference_words,
            "hypothesis": self.hypothesis,
            "word_errors": asdict(self.errors) if self.errors else None,
            "wer": self.errors.rate if self.errors else None,
            "leaked_words": self.leaked,
            "cosine_recording": self.cosine_recording,
            "cosine_earlier": self.cosine_earlier,
            "cosine_other": self.cosine_other,
            "measures": self.measures,
            "prosody_distance": self.prosody,
            "pronounced": asdict(self.pronounced) if self.pronounced else None,
            "seconds": round(self.seconds, 3),
            "reference_seconds": None if self.reference_seconds is None else round(self.reference_seconds, 3),
            "compute_seconds": self.compute_seconds,
            "finish_reason": self.finish_reason,
            "context_turns": self.context_turns,
            "flags": [flag.name for flag in self.flags],
            "audio": self.audio_file,
        }
