"""Stage `diarize`: who speaks when.

No model is used where this is known: in a call, each channel is a speaker, and given turns name theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_prep.audio.recording import RecordingAudio
from data_prep.config import DiarizeBackend, DiarizeConfig
from data_prep.records import MODEL_RATE, Recording, Speakers, SpeakerSpan, Speech, TrackSpeech
from data_prep.speech.words import checked_turns
from data_prep.stages.base import Item
from data_prep.stages.diarizers import Diarizer, load_diarizer
from data_prep.stages.pyannote import is_available


class DiarizeStage:
    """Speaker diarization.

    Raises ValueError or FileNotFoundError (one line) if the backend's package or weights are missing.
    """

    name = "diarize"
    version = 4  # 2: a quiet voice beside a loud one was heard as it was; 3: changes did not heed pauses
    reads: tuple[str, ...] = ("vad",)
    result = Speakers
    group_seconds = 0.0

    def __init__(self, cfg: DiarizeConfig) -> None:
        if cfg.backend is DiarizeBackend.auto:
            # decided here to be part of the fingerprint: results of the two are not mixed
            found = is_available(cfg.pyannote)
            cfg = replace(cfg, backend=DiarizeBackend.pyannote if found else DiarizeBackend.cluster)
        self.options = cfg
        self.backend = cfg.backend.value
        self.device = cfg.device
        self._diarizer: Diarizer | None = None

    def process(self, items: Sequence[Item]) -> list[Speakers]:
        return [self._speakers(item.recording, item.audio, item.results["vad"]) for item in items]

    def _speakers(self, recording: Recording, audio: RecordingAudio, speech: Speech) -> Speakers:
        if recording.turns is not None:
            return _given_speakers(recording)
        if len(speech.tracks) > 1:
            spans = [span for track in speech.tracks for span in _single(track, f"channel{track.channel}")]
            return Speakers(sorted(spans, key=lambda span: (span.start, span.speaker)))
        (track,) = speech.tracks
        if self._diarizer is None:
            self._diarizer = load_diarizer(self.options)
        found = self._diarizer.speakers(
            lambda start, end: audio.track(track.channel, MODEL_RATE, start, end), track.spans, recording.seconds
        )
        spans = [
            SpeakerSpan(start, min(end, recording.seconds), who, track.channel)
            for start, end, who in found
            if start < recording.seconds
        ]
        return Speakers(_named_by_appearance(spans), self._diarizer.one_at_a_time)


def _single(track: TrackSpeech, speaker: str) -> list[SpeakerSpan]:
    return [SpeakerSpan(span.start, span.end, speaker, track.channel) for span in track.spans]


def _named_by_appearance(spans: list[SpeakerSpan]) -> list[SpeakerSpan]:
    names: dict[str, str] = {}
    return [replace(span, speaker=names.setdefault(span.speaker, f"speaker{len(names)}")) for span in spans]


def _given_speakers(recording: Recording) -> Speakers:
    return Speakers(
        [
            SpeakerSpan(turn.start, turn.end, turn.given.speaker, turn.given.channel)
            for turn in checked_turns(recording)
            if turn.rejection is None
        ]
    )
