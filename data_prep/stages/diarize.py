"""Stage `diarize`: who speaks when.

No model is used where this is known: in a call, each channel is a speaker, and given turns name theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from csm.judges.hub import ModelUnavailable
from csm.judges.speaker import Resemblyzer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import DiarizeBackend, DiarizeConfig
from data_prep.records import MODEL_RATE, Recording, Speakers, SpeakerSpan, Speech, TrackSpeech
from data_prep.speech.clustering import cluster_speakers
from data_prep.speech.words import checked_turns
from data_prep.stages.base import Item
from data_prep.stages.pyannote import Pyannote, is_available


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
        self._encoder: Resemblyzer | None = None
        self._pyannote: Pyannote | None = None

    def process(self, items: Sequence[Item]) -> list[Speakers]:
        return [self._speakers(item.recording, item.audio, item.results["vad"]) for item in items]

    def _speakers(self, recording: Recording, audio: RecordingAudio, speech: Speech) -> Speakers:
        if recording.turns is not None:
            return _given_speakers(recording)
        if len(speech.tracks) > 1:
            spans = [span for track in speech.tracks for span in _single(track, f"channel{track.channel}")]
            return Speakers(sorted(spans, key=lambda span: (span.start, span.speaker)))
        (track,) = speech.tracks
        if self.options.backend is DiarizeBackend.single:
            return Speakers(_single(track, "speaker0"), one_at_a_time=True)
        spans = _named_by_appearance(self._search(audio, track, recording.seconds))
        return Speakers(spans, one_at_a_time=self.options.backend is DiarizeBackend.cluster)

    def _search(self, audio: RecordingAudio, track: TrackSpeech, seconds: float) -> list[SpeakerSpan]:
        channel = track.channel
        if self.options.backend is DiarizeBackend.pyannote:
            if self._pyannote is None:
                self._pyannote = Pyannote(self.options.pyannote, self.options.device)
            heard = self._pyannote.speakers(audio.track(channel, MODEL_RATE), self.options.max_speakers)
            return [SpeakerSpan(start, min(end, seconds), who, channel) for start, end, who in heard]
        if self._encoder is None:
            try:
                self._encoder = Resemblyzer(self.options.device)
            except ModelUnavailable as error:
                raise ModelUnavailable(f"{error}, or set diarize.backend=single") from error
        found = cluster_speakers(
            self._encoder,
            lambda start, end: audio.track(channel, MODEL_RATE, start, end),
            track.spans,
            self.options,
        )
        return [SpeakerSpan(start, end, str(who), channel) for start, end, who in found]


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
