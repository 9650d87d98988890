"""Stage `transcribe`: the words that are said, with their times.

Speech is recognized in clips of at most `max_clip_seconds`: neighboring spans of speech are joined, longer spans
divided where they are quietest. Between the spans of a clip, recognizers hear silence, so that no word of the other
side of a call, or of the background, becomes text. A batch holds clips of one recording only, so that a recording's
text does not depend on what it is processed with. Given turns with texts are not recognized; those without are, each
by itself. Where several speak on one track, one at a time, a clip holds one speaker (speech/by_speaker.py). A clip
whose text goes round in circles, or is as good as guessed, is recognized again in two parts, and one in which a whole
utterance has no word is divided before and after that utterance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from csm.judges.faster_whisper import FasterWhisper
from csm.judges.recognition import MAX_CLIP_SECONDS, Recognized, Recognizer
from csm.judges.transformers_whisper import TransformersWhisper
from csm.languages import UNSPACED
from data_prep.audio.recording import RecordingAudio
from data_prep.config import TranscribeBackend, TranscribeConfig
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import MODEL_RATE, Clip, Recording, Span, Speakers, Speech, TrackSpeech, Transcript, Word
from data_prep.speech.by_speaker import Joined, joined
from data_prep.speech.edges import quietest_moment
from data_prep.speech.words import checked_turns
from data_prep.stages.base import Item

MAX_PAUSE_IN_CLIP = 3.0
"""Longest pause inside a clip, in seconds: recognizers invent words in silence."""
LANGUAGE_CLIPS = 5
"""Clips, evenly over the recording, from which its language is detected."""
CLIPS_AT_ONCE = 64  # with their audio in memory: half an hour
CIRCLING = 2.4
"""Compression ratio from which a text repeats itself, as in Whisper's own code, which then draws at random. Here parts
of the clip are recognized instead, with the same result each time."""
GUESSED = -1.0
"""Mean log probability of the tokens below which a text is not to be trusted; the same. Such texts are often a single
word for half a minute of speech."""
SHORTEST_CUT = 4.0
"""Shorter clips are not divided for their texts, in seconds."""


class TranscribeStage:
    """Speech recognition.

    Raises ValueError or FileNotFoundError (one line) if a package, weights or a language are missing, and
    `RejectedRecording` (`no_words`) for a recording that holds no word, neither given nor recognized.
    """

    name = "transcribe"
    version = 5  # 4: utterances stayed without words; 3: all speakers of a track were heard together
    reads: tuple[str, ...] = ("vad", "diarize")
    result = Transcript
    group_seconds = 0.0

    def __init__(self, cfg: TranscribeConfig) -> None:
        if not 1.0 <= cfg.max_clip_seconds <= MAX_CLIP_SECONDS:
            raise ValueError(
                f"transcribe.max_clip_seconds={cfg.max_clip_seconds}: Whisper hears {MAX_CLIP_SECONDS:.0f} s at most"
            )
        self.options = cfg
        self.backend = cfg.backend.value
        self.device = cfg.device
        self._model: Recognizer | None = None

    def process(self, items: Sequence[Item]) -> list[Transcript]:
        return [self._some_words(item) for item in items]

    def _some_words(self, item: Item) -> Transcript:
        recording = item.recording
        found = self._transcript(recording, item.audio, item.results["vad"], item.results["diarize"])
        if recording.turns is None and not any(clip.words for clip in found.clips):
            if self.options.backend is TranscribeBackend.none:
                raise RejectedRecording(Reason.no_words, "it has no turns and no text, and transcribe.backend=none")
            raise RejectedRecording(Reason.no_words, "no word was recognized in its speech")
        return found

    def _transcript(
        self, recording: Recording, audio: RecordingAudio, speech: Speech, speakers: Speakers
    ) -> Transcript:
        if self.options.backend is TranscribeBackend.none:
            return Transcript([])
        stretches = self._stretches(recording, audio, speech, speakers)
        if not stretches:
            return Transcript([])
        if self._model is None:
            self._model = load_recognizer(self.options, "transcribe.model")
        spans: dict[int | None, list[Span]] = {}
        if recording.turns is None:
            spans = {track.channel: track.spans for track in speech.tracks}

        def read(channel: int | None, clip: Joined) -> np.ndarray:
            return clip.samples(lambda part: _only_speech(read_clip(audio, channel, part), part, spans.get(channel)))

        lang, lang_prob = recording.lang, 1.0
        if lang is None:
            lang, lang_prob = self._language([read(*stretches[index]) for index in _spread(len(stretches))])
        clips: list[Clip] = []
        for first in range(0, len(stretches), CLIPS_AT_ONCE):
            some = stretches[first : first + CLIPS_AT_ONCE]
            for channel, clip, found in self._heard(some, read, lang, audio, spans):
                scores = found.avg_logprob, found.no_speech_prob, compression_ratio(found.text)
                placed = clip.placed([word for word in found.words if word.text])
                texts = [found.text] if len(placed) == 1 else [_text(words, lang) for words in placed]
                for part, text, words in zip(clip.parts, texts, placed, strict=True):
                    clips.append(Clip(part.start, part.end, channel, text, words, lang, lang_prob, *scores))
        if recording.turns is None:
            order = [track.channel for track in speech.tracks]
            clips.sort(key=lambda clip: (order.index(clip.channel), clip.start))
        return Transcript(clips)

    def _heard(
        self,
        stretches: list[tuple[int | None, Joined]],
        read: Callable[[int | None, Joined], np.ndarray],
        lang: str,
        audio: RecordingAudio,
        spans: dict[int | None, list[Span]],
    ) -> list[tuple[int | None, Joined, Recognized]]:
        """Texts recognized in each clip, or in its parts, in order. spans: of speech, by track"""
        assert self._model is not None
        texts = self._model.recognize([read(channel, clip) for channel, clip in stretches], lang)
        heard = []
        for (channel, clip), found in zip(stretches, texts, strict=True):
            failed = compression_ratio(found.text) > CIRCLING or found.avg_logprob < GUESSED
            if failed and clip.seconds >= SHORTEST_CUT:
                parts = clip.halves(quietest_of(audio, channel))
            else:
                parts = clip.without_gaps(found.words, spans.get(channel))
            if len(parts) > 1:
                heard += self._heard([(channel, part) for part in parts], read, lang, audio, spans)
            else:
                heard.append((channel, clip, found))
        return heard

    def _stretches(
        self, recording: Recording, audio: RecordingAudio, speech: Speech, speakers: Speakers
    ) -> list[tuple[int | None, Joined]]:
        limit = self.options.max_clip_seconds
        if recording.turns is None:
            return [(track.channel, clip) for track in speech.tracks for clip in self._of_track(audio, track, speakers)]
        return [
            (turn.given.channel, Joined([clip]))
            for turn in checked_turns(recording)
            if turn.rejection is None and turn.given.text is None
            for clip in clips_of([Span(turn.start, turn.end)], limit, quietest_of(audio, turn.given.channel))
        ]

    def _of_track(self, audio: RecordingAudio, track: TrackSpeech, speakers: Speakers) -> list[Joined]:
        limit, quietest = self.options.max_clip_seconds, quietest_of(audio, track.channel)
        spans = [span for span in speakers.spans if span.channel == track.channel]
        if speakers.one_at_a_time and len({span.speaker for span in spans}) > 1:
            return joined(spans, limit, quietest)
        return [Joined([clip]) for clip in clips_of(track.spans, limit, quietest)]

    def _language(self, clips: Sequence[np.ndarray]) -> tuple[str, float]:
        """The language with the largest mean probability over clips from all over the recording."""
        assert self._model is not None
        found = self._model.languages(clips)
        means = {lang: sum(one.get(lang, 0.0) for one in found) / len(clips) for lang in sorted(set().union(*found))}
        best = max(means, key=lambda lang: means[lang])
        return best, means[best]


def clips_of(spans: Sequence[Span], limit: float, quietest: Callable[[float, float], float]) -> list[Span]:
    """Clips of at most `limit` seconds that cover all of `spans`; only spans longer than that are cut.

    Args:
        spans: of one track, by start.
        limit: seconds.
        quietest: gives the quietest moment between two times.
    """
    clips: list[Span] = []
    for span in spans:
        last = clips[-1] if clips else None
        if last and span.end - last.start <= limit and span.start - last.end <= MAX_PAUSE_IN_CLIP:
            last.end = span.end
            continue
        start = span.start
        while span.end - start > limit:
            cut = quietest(start + limit / 2, start + limit)
            clips.append(Span(start, cut))
            start = cut
        clips.append(Span(start, span.end))
    return clips


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of its zlib compression, as in Whisper's own code; 0 for an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def load_recognizer(cfg: TranscribeConfig, option: str) -> Recognizer:
    """The recognizer of `cfg`; `option` chose its model, for messages. Raises ModelUnavailable if it is missing."""
    if cfg.backend is TranscribeBackend.faster_whisper:
        return FasterWhisper(
            cfg.model,
            cfg.device,
            compute_type=cfg.compute_type,
            beam_size=cfg.beam_size,
            batch_size=cfg.batch_size,
            option=option,
        )
    dtype = torch.float16 if cfg.device.startswith("cuda") else torch.float32
    return TransformersWhisper(cfg.model, cfg.device, dtype=dtype, batch_size=cfg.batch_size, option=option)


def read_clip(audio: RecordingAudio, channel: int | None, span: Span) -> np.ndarray:
    """A clip as recognizers take it: float32 [N], 16 kHz."""
    samples = audio.track(channel, MODEL_RATE, span.start, span.end)
    return samples[: int(MAX_CLIP_SECONDS * MODEL_RATE)]  # rounding may add a sample


def _only_speech(samples: np.ndarray, clip: Span, spans: Sequence[Span] | None) -> np.ndarray:
    """A clip (float32 [N], 16 kHz) with what is outside `spans` silenced; None: nothing is."""
    if spans is None:
        return samples
    speech = np.zeros(len(samples), np.float32)
    for span in spans:
        first, last = ((time - clip.start) * MODEL_RATE for time in (span.start, span.end))
        if last > 0:
            speech[max(0, round(first)) : round(last)] = 1.0
    return samples * speech


def _spread(count: int) -> list[int]:
    """At most `LANGUAGE_CLIPS` of `count` numbers, evenly."""
    return [int(index) for index in np.linspace(0, count - 1, min(LANGUAGE_CLIPS, count)).round()]


def _text(words: Sequence[Word], lang: str) -> str:
    return ("" if lang in UNSPACED else " ").join(word.text for word in words)


def quietest_of(audio: RecordingAudio, channel: int | None) -> Callable[[float, float], float]:
    """Gives the quietest moment of a track between two times, see `clips_of`."""
    return lambda start, end: quietest_moment(audio, channel, start, end)
