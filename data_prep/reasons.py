"""Reason codes of rejections, as in rejects.parquet and ledger.parquet, and the exception that carries one."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """The value of each member, printed and stored, is its name."""

    # plan: whole recordings
    audio_missing = "audio_missing"
    audio_empty = "audio_empty"
    audio_corrupt = "audio_corrupt"  # not audio, or damaged
    audio_truncated = "audio_truncated"  # decodes, but ends early
    not_finite = "not_finite"  # NaN or infinite samples
    recording_too_short = "recording_too_short"
    recording_too_long = "recording_too_long"
    bad_annotation = "bad_annotation"  # a transcript or manifest entry that cannot be read
    bad_name = "bad_name"  # a file name that is not UTF-8
    duplicate_file = "duplicate_file"
    test_split = "test_split"  # of a split that the data keep for tests
    # run, whichever stage reads it
    audio_changed = "audio_changed"  # the file is not the one that was planned
    # vad
    no_speech = "no_speech"
    # transcribe
    no_words = "no_words"  # speech without a recognized word
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
    text_mismatch = "text_mismatch"  # the given text is not what is said; from the data themselves, of whole recordings
    speaker = "speaker"  # another voice in the turn, or not its speaker's
    # encode
    end_frame = "end_frame"  # a frame of zero codes, which means end of speech
    # pack
    duplicate_audio = "duplicate_audio"
    duplicate_text = "duplicate_text"
    overlap = "overlap"
    short_conversation = "short_conversation"
    context_only = "context_only"  # no turn of its conversation is good enough to be predicted
    # any stage
    crashed = "crashed"  # it killed its worker, executor.max_attempts times
    failed = "failed"  # an unexpected error, or a transient one in executor.max_attempts attempts
    timeout = "timeout"

    def __str__(self) -> str:
        return self.value


class RejectedRecording(Exception):
    """Nothing of a recording can be used, on any attempt. Raised by stages and by the code that reads audio."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message
