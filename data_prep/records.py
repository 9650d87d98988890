"""Records of data preparation: dataclasses, each a row (or part of a row) of a parquet table.

Times are seconds in the recording. A *track* is a signal processed by itself: one channel of a two-channel call
(`channel` 0 or 1), or the mean of all channels (`channel` None). Audio is float32 throughout: `[N]` for a track,
16 kHz for models (`MODEL_RATE`), the codec's rate for codes.

    Recording -> Speech -> Speakers -> Transcript -> Turns -> Scores -> Encoded -> csm.data.sample.Sample
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from csm.judges.recognition import Word
from data_prep.reasons import Reason

MODEL_RATE = 16_000
"""Sample rate in Hz of the input of voice activity, diarization, recognition and quality models."""

UNKNOWN_LANGUAGE = "und"  # ISO 639-2, undetermined


# ------------------------------------------------------------------------------------------------ recordings


@dataclass
class Made:
    """Audio that is put together from others when it is read, as one file; see audio/made.py."""

    files: list[str]  # paths or URLs, each of them a channel; the only one, if `streams` or a stretch is asked for
    streams: bool = False  # each audio stream of the container is a channel
    start: float = 0.0  # seconds; the stretch that is read
    end: float | None = None


@dataclass
class Locator:
    """The location of an audio file's bytes: a file, a range of a tar file, or a cell of a parquet file."""

    path: str  # absolute, or an fsspec URL
    offset: int | None = None  # tar: in bytes, of the member's content
    size: int | None = None
    row: int | None = None  # parquet: number of the row
    column: str | None = None  # parquet: struct column with a field `bytes`
    made: Made | None = None  # several files as one, or a stretch of one; `path` is the first of them


@dataclass
class GivenTurn:
    """A turn as annotated by the user; a missing text is transcribed."""

    number: int  # position in the user's list, for messages
    speaker: str
    start: float
    end: float | None  # None: to the end of the recording
    text: str | None = None
    channel: int | None = None
    speaker_id: int | None = None  # an integer given as the speaker, kept unchanged


@dataclass
class Recording:
    """One audio file, from its source to its stages. A row of recordings.parquet."""

    id: str  # unique in the plan: "<source>/<the user's id, or its path in the source>"
    source: str
    audio: str  # for display: path relative to the source, "calls.tar/17.wav" for a tar member
    locator: Locator
    group: str  # show or caller: never on both sides of a split
    split: str | None  # None: by the group's hash
    lang: str | None  # None: detected
    licence: str
    # properties of the file, set by probing
    sha256: str = ""  # of its bytes
    seconds: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    codec_format: str = ""  # "wav/pcm_16", "mp3", ...
    turns: list[GivenTurn] | None = None  # None: nothing is annotated
    two_channel: str = "auto"  # SourceConfig.two_channel: auto, yes, no


# ---------------------------------------------------------------------------------------- results of stages


@dataclass
class Span:
    """An interval of a track."""

    start: float
    end: float


@dataclass
class TrackSpeech:
    channel: int | None
    spans: list[Span]  # by start, disjoint


@dataclass
class Speech:
    """Result of stage `vad`: the speech of each track."""

    tracks: list[TrackSpeech]


@dataclass
class SpeakerSpan:
    """An interval in which one speaker speaks; spans of different speakers may overlap."""

    start: float
    end: float
    speaker: str
    channel: int | None = None


@dataclass
class Speakers:
    """Result of stage `diarize`: spans of speakers, by start."""

    spans: list[SpeakerSpan]
    one_at_a_time: bool = False  # on a track with several speakers: who speaks over whom was not looked for


@dataclass
class Clip:
    """The text recognized in an interval of at most 30 s."""

    start: float
    end: float
    channel: int | None
    text: str
    words: list[Word]
    lang: str
    lang_prob: float
    avg_logprob: float  # mean over the tokens
    no_speech_prob: float
    compression_ratio: float  # of the text under zlib; repetition raises it


@dataclass
class Transcript:
    """Result of stage `transcribe`."""

    clips: list[Clip]


@dataclass(kw_only=True)
class Rejection:
    """The reason why a recording, or a turn of it, is not in the dataset. A row of rejects.parquet.

    The code that rejects sets reason and message; `located` adds the other fields.
    """

    source: str = ""
    recording: str = ""
    audio: str = ""
    turn: int | None = None  # DraftTurn.number; None: the whole recording, or the part of it outside all listed turns
    stage: str = ""
    reason: Reason
    message: str
    start: float | None = None
    end: float | None = None

    def located(self, recording: Recording, stage: str, turn: DraftTurn | None = None) -> Rejection:
        """A copy with the stage, the recording, and the turn if one is given."""
        named = replace(self, source=recording.source, recording=recording.id, audio=recording.audio, stage=stage)
        return named if turn is None else replace(named, turn=turn.number, start=turn.start, end=turn.end)


@dataclass
class DraftTurn:
    """A turn of a recording, from stage `turns`. A rejected turn stays in the list: it ends a conversation."""

    number: int  # by start, from 0
    speaker: str
    speaker_id: int | None
    channel: int | None
    start: float
    end: float
    text: str
    words: list[Word]  # empty if the text was given
    overlap: float | None  # seconds during which another speaker speaks on the same track; None: not known
    lang: str | None  # None: not detected
    lang_prob: float | None
    avg_logprob: float | None
    no_speech_prob: float | None
    compression_ratio: float | None
    rejection: Rejection | None


@dataclass
class Event:
    """A vocal event that is not a turn of its own."""

    time: float
    speaker: str
    kind: str  # "backchannel"
    text: str


@dataclass
class Turns:
    """Result of stage `turns`."""

    turns: list[DraftTurn]
    events: list[Event]


@dataclass
class TurnScore:
    """Measures of a turn's audio, from stage `score`. None: not measured."""

    number: int  # DraftTurn.number
    lufs: float | None  # loudness, EBU R 128
    clipped: float | None  # share of samples
    bandwidth: float | None  # Hz, the highest frequency with content
    ovrl: float | None  # DNSMOS P.835, 1..5
    sig: float | None
    bak: float | None
    fingerprint: list[int]  # acoustic, see speech/fingerprint.py; empty for a turn too short to have one
    heard: str | None = None  # by a recognizer, of a turn with a given text
    cer: float | None = None  # character error rate of the given text against `heard`
    half_similarity: float | None = None  # cosine of the voices of the turn's halves
    speaker_similarity: float | None = None  # cosine of the turn's voice and that of its speaker's other turns
    music: float | None = None  # share of its frames with music or singing


@dataclass
class Scores:
    """Result of stage `score`: one entry for each turn that is not rejected."""

    turns: list[TurnScore]
    pcm_sha256: str  # of the recording's decoded audio


@dataclass
class EncodedTurn:
    """The codes of a turn."""

    number: int  # DraftTurn.number
    frames: int
    codes: bytes  # little-endian uint16 [K, frames]
    gain_db: float  # applied before encoding
    shift: int = 0  # the start was moved to the left by shift / encode.shifts of a frame


@dataclass
class Encoded:
    """Result of stage `encode`; `rejected` lists the turns without codes."""

    turns: list[EncodedTurn]
    rejected: list[Rejection]


# ---------------------------------------------------------------------------------------------- bookkeeping


@dataclass
class ComparedText:
    """A given text and what a recognizer heard. A row of texts.parquet."""

    recording: str
    audio: str
    turn: int  # DraftTurn.number
    start: float
    end: float
    text: str
    heard: str
    cer: float
    kept: bool


@dataclass
class Duplicate:
    """A recording or a turn that repeats another, which is kept. A row of duplicates.parquet."""

    recording: str
    turn: int | None  # DraftTurn.number; None: the whole recording
    reason: Reason  # duplicate_audio or duplicate_text
    kept_recording: str
    kept_turn: int | None
    similarity: float  # share of equal fingerprint bits, or estimated share of equal shingles; 1 for equal samples


@dataclass
class LedgerRow:
    """Track time of a recording, by outcome. The rows of a recording add up to seconds x tracks, exactly."""

    source: str
    lang: str
    recording: str
    stage: str  # in which the time was lost, or "kept"
    reason: str  # "" for time that was kept
    ms: int


@dataclass
class StageTime:
    """The time a stage took for a unit. A row of stages.parquet."""

    stage: str
    unit: str
    backend: str
    recordings: int
    audio_seconds: float
    wall_seconds: float
    cpu_seconds: float
    device: str
