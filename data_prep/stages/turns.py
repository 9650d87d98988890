"""Stage `turns`: from words and speakers to turns. Given turns are kept as they are, but for backchannels and, with
`turns.trim_given_seconds`, the silence at their ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from csm.languages import UNSPACED
from data_prep.audio.recording import RecordingAudio
from data_prep.config import TurnsConfig, VadConfig
from data_prep.reasons import Reason
from data_prep.records import (
    Clip,
    DraftTurn,
    Event,
    Recording,
    Rejection,
    Span,
    Speakers,
    SpeakerSpan,
    Speech,
    Transcript,
    Turns,
)
from data_prep.speech.edges import Edges, end_of_sound
from data_prep.speech.grouping import Group, end_of, grouped, start_of
from data_prep.speech.text_checks import without_controls
from data_prep.speech.words import (
    SpokenWord,
    aligned,
    changes_at_sentence_ends,
    checked_turns,
    speakers_of,
    united,
)
from data_prep.stages.base import Item


@dataclass
class TurnsOptions:
    """Options that the stage's results depend on."""

    turns: TurnsConfig
    vad_pad_seconds: float


class TurnsStage:
    """Forms turns. Every word is in a turn or an event; unusable turns stay in the list, with their rejection."""

    name = "turns"
    version = 3  # 2: overlap was 0 where it is not known; 1: rejections had other columns
    reads: tuple[str, ...] = ("vad", "diarize", "transcribe")
    result = Turns
    backend = ""
    device = "cpu"
    group_seconds = 0.0

    def __init__(self, cfg: TurnsConfig, vad: VadConfig) -> None:
        self.options = TurnsOptions(cfg, vad.pad_seconds)

    def process(self, items: Sequence[Item]) -> list[Turns]:
        return [self._turns(item) for item in items]

    def _turns(self, item: Item) -> Turns:
        speech, speakers, transcript = (item.results[name] for name in self.reads)
        if item.recording.turns is not None:
            turns = given_turns(item.audio, item.recording, speakers, transcript, self.options.turns)
            return Turns(turns, given_backchannels(turns, self.options.turns))
        return made_turns(item.audio, item.recording, speech, speakers, transcript, self.options)


# ------------------------------------------------------------------------------------------- from recognition


def made_turns(
    audio: RecordingAudio,
    recording: Recording,
    speech: Speech,
    speakers: Speakers,
    transcript: Transcript,
    options: TurnsOptions,
) -> Turns:
    """Turns, numbered by start, and events, from recognition."""
    cfg = options.turns
    words = spoken_words(speech, speakers, transcript)
    groups, backchannels = grouped(words, cfg)
    overlaps = None if speakers.one_at_a_time else _overlaps(speakers, backchannels)
    turns: list[DraftTurn] = []
    for track in speech.tracks:
        edges = Edges(audio, track, recording.seconds, options.vad_pad_seconds, cfg)
        of_track = [group for group in groups if group[0].clip.channel == track.channel]
        for group, (start, end) in zip(of_track, edges.around(of_track), strict=True):
            both = None if overlaps is None else overlaps.get(track.channel, [])
            turns.append(_draft(group, start, end, both, cfg))
    turns.sort(key=lambda turn: (turn.start, turn.end, turn.speaker))
    for number, turn in enumerate(turns):
        turn.number = number
    return Turns(turns, [Event(start_of(run), run[0].speaker, "backchannel", _text(run)) for run in backchannels])


def spoken_words(speech: Speech, speakers: Speakers, transcript: Transcript) -> list[SpokenWord]:
    """All words, moved into speech, with their speakers; by track, then by start."""
    found: list[SpokenWord] = []
    for track in speech.tracks:
        clips = [clip for clip in transcript.clips if clip.channel == track.channel for _ in clip.words]
        words = [word for clip in transcript.clips if clip.channel == track.channel for word in clip.words]
        if words:
            words = aligned(words, track.spans)
            who = speakers_of(words, [span for span in speakers.spans if span.channel == track.channel])
            who = changes_at_sentence_ends(words, who, clips)
            found += [SpokenWord(*of_word) for of_word in zip(words, who, clips, strict=True)]
    return found


def _draft(group: Group, start: float, end: float, overlaps: list[Span] | None, cfg: TurnsConfig) -> DraftTurn:
    clips = [spoken.clip for spoken in group]
    return DraftTurn(
        number=-1,
        speaker=group[0].speaker,
        speaker_id=None,
        channel=clips[0].channel,
        start=start,
        end=end,
        text=_text(group),
        words=[spoken.word for spoken in group],
        overlap=None if overlaps is None else _common(Span(start, end), overlaps),
        rejection=_too_short(end - start, cfg) if end - start < cfg.min_seconds else None,
        **_confidence(clips),
    )


class _Confidence(TypedDict):
    """The fields of `DraftTurn` that recognition gives."""

    lang: str | None
    lang_prob: float | None
    avg_logprob: float | None
    no_speech_prob: float | None
    compression_ratio: float | None


def _confidence(clips: list[Clip]) -> _Confidence:
    """Confidence of a turn from the clips of its words (one entry for each word).

    The mean log probability, but the worst of the two measures that reveal a clip of which nothing can be trusted.
    """
    if not clips:
        return _Confidence(lang=None, lang_prob=None, avg_logprob=None, no_speech_prob=None, compression_ratio=None)
    return _Confidence(
        lang=clips[0].lang,
        lang_prob=clips[0].lang_prob,
        avg_logprob=sum(clip.avg_logprob for clip in clips) / len(clips),
        no_speech_prob=max(clip.no_speech_prob for clip in clips),
        compression_ratio=max(clip.compression_ratio for clip in clips),
    )


def _text(group: Group) -> str:
    return ("" if group[0].clip.lang in UNSPACED else " ").join(spoken.word.text for spoken in group)


# ------------------------------------------------------------------------------------------- from annotation


def given_turns(
    audio: RecordingAudio, recording: Recording, speakers: Speakers, transcript: Transcript, cfg: TurnsConfig
) -> list[DraftTurn]:
    """Given turns as they are, by start; missing texts come from recognition."""
    overlaps = _overlaps(speakers, [])
    heard = iter(transcript.clips)
    turns: list[DraftTurn] = []
    for number, turn in enumerate(checked_turns(recording)):
        given, rejection, clips = turn.given, turn.rejection, list[Clip]()
        if given.text is None and rejection is None:
            clips = _clips_until(heard, turn.end)
        text = without_controls(given.text) if given.text is not None else _joined(clips)
        end = turn.end
        if cfg.trim_given_seconds is not None and rejection is None:
            end = min(end, end_of_sound(audio, given.channel, turn.start, end) + cfg.trim_given_seconds)
        seconds = end - turn.start
        if rejection is None and not text:
            rejection = _no_text(bool(clips), given.number)
        if rejection is None and seconds < cfg.min_seconds:
            rejection = _too_short(seconds, cfg)
        if rejection is None and seconds > cfg.max_given_seconds:
            message = f"{seconds:.2f} s are more than turns.max_given_seconds={cfg.max_given_seconds}"
            rejection = Rejection(reason=Reason.too_long, message=message)
        confidence = _confidence(clips)
        if not clips:
            confidence["lang"] = recording.lang
        turns.append(
            DraftTurn(
                number=number,
                speaker=given.speaker,
                speaker_id=given.speaker_id,
                channel=given.channel,
                start=turn.start,
                end=end,
                text=text,
                words=[word for clip in clips for word in clip.words],
                overlap=_common(Span(turn.start, end), overlaps.get(given.channel, [])),
                rejection=rejection,
                **confidence,
            )
        )
    return turns


def given_backchannels(turns: Sequence[DraftTurn], cfg: TurnsConfig) -> list[Event]:
    """Events for the given turns that are backchannels, by the rule for recognized ones; the turns are rejected.

    A turn without a length, of which only the moment is known, can be no turn, but such an event.
    """

    def is_short(turn: DraftTurn) -> bool:
        seconds = turn.end - turn.start
        return seconds <= cfg.backchannel_seconds and len(turn.text.split()) <= cfg.backchannel_words

    events: list[Event] = []
    talking: list[DraftTurn] = []  # longer turns that have not ended
    for turn in turns:
        moment = turn.start == turn.end and turn.rejection is not None and turn.rejection.reason == Reason.bad_times
        if turn.rejection is not None and not moment:
            continue
        talking = [other for other in talking if other.end > turn.start]
        if not is_short(turn):
            talking.append(turn)
            continue
        outer = [other for other in talking if other.speaker != turn.speaker and turn.end < other.end]
        if outer:
            message = f"a backchannel in turn {outer[0].number}; kept as an event"
            turn.rejection = Rejection(reason=Reason.backchannel, message=message)
            events.append(Event(turn.start, turn.speaker, "backchannel", turn.text))
    return events


def _clips_until(clips: Iterator[Clip], end: float) -> list[Clip]:
    """The next clips, up to the one that ends with the turn; stage `transcribe` makes them in the order of turns."""
    found: list[Clip] = []
    for clip in clips:
        found.append(clip)
        if clip.end == end:
            return found
    return []  # nothing was recognized: transcribe.backend=none


def _joined(clips: list[Clip]) -> str:
    separator = "" if clips and clips[0].lang in UNSPACED else " "
    return separator.join(clip.text for clip in clips if clip.text)


def _no_text(heard: bool, number: int) -> Rejection:
    if heard:
        return Rejection(reason=Reason.no_words, message=f"given turn {number}: no word was recognized in it")
    message = f"given turn {number}: it has no text, and transcribe.backend=none"
    return Rejection(reason=Reason.empty_text, message=message)


def _too_short(seconds: float, cfg: TurnsConfig) -> Rejection:
    message = f"{seconds:.2f} s are less than turns.min_seconds={cfg.min_seconds}"
    return Rejection(reason=Reason.too_short, message=message)


# ------------------------------------------------------------------------------------------------- overlap


def _overlaps(speakers: Speakers, backchannels: list[Group]) -> dict[int | None, list[Span]]:
    """For each channel, the spans in which two speak at once: by start, disjoint."""
    spans: dict[int | None, list[SpeakerSpan]] = {}
    for span in speakers.spans:
        spans.setdefault(span.channel, []).append(span)
    found: dict[int | None, list[Span]] = {}
    for channel, of_channel in spans.items():
        both: list[Span] = []
        talking: list[SpeakerSpan] = []
        for span in sorted(of_channel, key=lambda span: span.start):
            talking = [other for other in talking if other.end > span.start]
            both += [Span(span.start, min(span.end, other.end)) for other in talking if other.speaker != span.speaker]
            talking.append(span)
        found[channel] = both
    for run in backchannels:
        found.setdefault(run[0].clip.channel, []).append(Span(start_of(run), end_of(run)))
    return {channel: united(both) for channel, both in found.items()}


def _common(span: Span, others: list[Span]) -> float:
    """Seconds of `span` that are in `others` (by start, disjoint)."""
    first = max(0, bisect_right(others, span.start, key=lambda other: other.start) - 1)
    seconds = 0.0
    for other in others[first:]:
        if other.start >= span.end:
            break
        seconds += max(0.0, min(span.end, other.end) - max(span.start, other.start))
    return round(seconds, 3)
