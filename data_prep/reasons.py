"""Why something is rejected: the codes in rejects.parquet and ledger.parquet, and the exception that carries one."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """Each is its own name, also where it is printed or stored."""

    # plan: whole recordings
    audio_missing = "audio_missing"
    audio_empty = "audio_empty"
    audio_corrupt = "audio_corrupt"  # no audio, or damaged
    audio_truncated = "audio_truncated"  # decodes, but ends early
    not_finite = "not_finite"  # NaN or infinite samples
    recording_too_short = "recording_too_short"
    recording_too_long = "recording_too_long"
    bad_annotation = "bad_annotation"  # a transcript or manifest entry that cannot be read
    bad_name = "bad_name"  # a file name that is not UTF-8
    duplicate_file = "duplicate_file"
    # vad
    no_speech = "no_speech"
    # transcribe
    no_words = "no_words"  # speech in which no word was recognised
    # turns
    empty_text = "empty_text"
    bad_times = "bad_times"
    times_outside_audio = "times_outside_audio"
    channel_missing = "channel_missing"
    too_short = "too_short"
    too_long = "too_long"
    backchannel = "backchannel"  # kept as an event
    # limits, loose and strict
    language = "language"
    quality = "quality"
    asr_confidence = "asr_confidence"
    compression = "compression"
    hallucination = "hallucination"
    repetition = "repetition"
    speech_rate = "speech_rate"
    clipping = "clipping"
    bandwidth = "bandwidth"
    # encode
    end_frame = "end_frame"  # a frame of zero codes, which means end of speech
    # pack
    duplicate_audio = "duplicate_audio"
    duplicate_text = "duplicate_text"
    overlap = "overlap"
    short_conversation = "short_conversation"
    context_only = "context_only"  # in a conversation of which no turn is good enough to be predicted
    # any stage
    crashed = "crashed"  # the worker died of it, as often as allowed
    failed = "failed"  # failed in a way that may pass, as often as allowed
    timeout = "timeout"

    def __str__(self) -> str:
        return self.value


class RejectedRecording(Exception):
    """A recording of which nothing can be used, whatever is tried: raised by stages, and by what reads audio."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message
