"""Recognized words moved to the speech that they belong to, with their speakers; and checks of given turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from data_prep.reasons import Reason
from data_prep.records import Clip, GivenTurn, Recording, Rejection, Span, SpeakerSpan, Word
from data_prep.speech.text_checks import is_no_speech, without_controls

STRETCH_SECONDS = 1.0
"""The first and last word of a span of speech are extended to its ends if those are no further away. Word times are
inaccurate, and speech beyond the last word is usually its end; more than this is speech that was not recognized."""

SENTENCE_END = (".", "?", "!", "…", "。", "？", "！")  # noqa: RUF001
CHANGE_WORDS, CHANGE_SECONDS = 2, 0.5
"""A change of speaker moves to the end of a sentence that is at most so far away: few stop one word before it."""


@dataclass
class SpokenWord:
    """A word, its speaker, and the clip in which it was recognized."""

    word: Word
    speaker: str
    clip: Clip


def aligned(words: Sequence[Word], spans: Sequence[Span]) -> list[Word]:
    """Moves the words of a track, sorted by time, into its spans of speech (at least one), sorted by start.

    A word belongs to the span that it overlaps most, or else to the nearest. Inside a span, a word starts no earlier
    than the one before it ends.
    """
    found: list[Word] = []
    homes: list[int] = []
    at = 0
    for word in words:
        at = _home(word, spans, at)
        span = spans[at]
        earliest = found[-1].end if homes and homes[-1] == at else span.start
        start = min(max(word.start, earliest), span.end)
        found.append(replace(word, start=start, end=min(max(word.end, start), span.end)))
        homes.append(at)
    for i, (word, home) in enumerate(zip(found, homes, strict=True)):
        span = spans[home]
        if (i == 0 or homes[i - 1] != home) and word.start - span.start <= STRETCH_SECONDS:
            word.start = span.start
        if (i + 1 == len(found) or homes[i + 1] != home) and span.end - word.end <= STRETCH_SECONDS:
            word.end = span.end
    return found


def _home(word: Word, spans: Sequence[Span], first: int) -> int:
    """Index of the span of a word, not before `first`."""
    best, best_nearness = first, _nearness(word, spans[first])
    for index in range(first + 1, len(spans)):
        nearness = _nearness(word, spans[index])
        if nearness > best_nearness:
            best, best_nearness = index, nearness
        if spans[index].start > word.end:
            break
    return best


def speakers_of(words: Sequence[Word], spans: Sequence[SpeakerSpan]) -> list[str]:
    """The speaker of each of a track's words, by time: whose span (by start) overlaps it most, or is nearest."""
    found: list[str] = []
    first = 0
    for word in words:
        while first + 1 < len(spans) and spans[first].end <= word.start and spans[first + 1].start <= word.start:
            first += 1
        best = spans[first]
        for span in spans[first + 1 :]:
            if _nearness(word, span) > _nearness(word, best):
                best = span
            if span.start > word.end:
                break
        found.append(best.speaker)
    return found


def changes_at_sentence_ends(words: Sequence[Word], speakers: Sequence[str], clips: Sequence[Clip]) -> list[str]:
    """The speakers of a track's words, by time, with changes of speaker moved to the nearest end of a sentence.

    Only as far as `CHANGE_WORDS` and `CHANGE_SECONDS`, within a clip, and no turn loses all its words. A change from
    one clip to another, whose words were not heard together, stays. clips: of the words
    """

    def boundary(index: int) -> float:
        return (words[index - 1].end + words[index].start) / 2

    def ends_sentence(index: int) -> bool:
        return words[index - 1].text.endswith(SENTENCE_END)

    found = list(speakers)
    changes = [i for i in range(1, len(words)) if speakers[i] != speakers[i - 1]]
    for before, change, after in zip([0, *changes], changes, [*changes[1:], len(words)], strict=False):
        if ends_sentence(change) or clips[change] is not clips[change - 1]:
            continue
        first, last = max(before + 1, change - CHANGE_WORDS), min(after - 1, change + CHANGE_WORDS)
        near = [
            index
            for index in range(first, last + 1)
            if ends_sentence(index)
            and clips[index] is clips[change]
            and abs(boundary(index) - boundary(change)) <= CHANGE_SECONDS
        ]
        if near:
            index = min(near, key=lambda index: (abs(boundary(index) - boundary(change)), index))
            found[change:index] = [speakers[change - 1]] * max(0, index - change)
            found[index:change] = [speakers[change]] * max(0, change - index)
    return found


def _nearness(word: Word, span: Span | SpeakerSpan) -> float:
    """Seconds of overlap; if negative, seconds between the two."""
    return min(word.end, span.end) - max(word.start, span.start)


def united(spans: Iterable[Span]) -> list[Span]:
    """The union of spans: by start, disjoint."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and span.start <= found[-1].end:
            found[-1].end = max(found[-1].end, span.end)
        else:
            found.append(Span(span.start, span.end))
    return found


# --------------------------------------------------------------------------------------------------- given turns

END_TOLERANCE_SECONDS = 0.1
"""How far a turn may extend beyond the audio (annotation tools round) before its times count as wrong."""


@dataclass
class CheckedTurn:
    """A given turn, clipped to the audio, or with its rejection."""

    given: GivenTurn
    start: float
    end: float
    rejection: Rejection | None


def checked_turns(recording: Recording) -> list[CheckedTurn]:
    """The given turns of a recording that has some, by start; turns that start together stay in the user's order."""
    assert recording.turns is not None
    turns = [_checked(turn, recording) for turn in recording.turns]
    first: dict[tuple[str, int | None, float, float, str | None], int] = {}
    for turn in turns:
        given = turn.given
        if turn.rejection is None:
            kept = first.setdefault((given.speaker, given.channel, turn.start, turn.end, given.text), given.number)
            if kept != given.number:
                message = f"given turn {given.number}: the same as given turn {kept}"
                turn.rejection = Rejection(reason=Reason.duplicate_text, message=message)
    return sorted(turns, key=lambda turn: (turn.start, turn.given.number))


def _checked(turn: GivenTurn, recording: Recording) -> CheckedTurn:
    end = recording.seconds if turn.end is None else turn.end
    problem = _problem(turn, end, recording)
    if problem:
        reason, message = problem
        rejection = Rejection(reason=reason, message=f"given turn {turn.number}: {message}")
        return CheckedTurn(turn, turn.start, end, rejection)
    return CheckedTurn(turn, turn.start, min(end, recording.seconds), None)


def _problem(turn: GivenTurn, end: float, recording: Recording) -> tuple[Reason, str] | None:
    if turn.text is not None and not without_controls(turn.text):
        return Reason.empty_text, "its text is empty"
    if turn.text is not None and is_no_speech(turn.text):
        return Reason.empty_text, f"its text, {turn.text[:40]!r}, holds no word, only signs or markup"
    if not end > turn.start:
        return Reason.bad_times, f"it ends at {end} s, not after its start at {turn.start} s"
    if turn.start < 0 or turn.start >= recording.seconds or end > recording.seconds + END_TOLERANCE_SECONDS:
        audio = f"the audio of {recording.seconds:.2f} s"
        return Reason.times_outside_audio, f"its times {turn.start}..{end} s are outside {audio}"
    if turn.channel is not None and not 0 <= turn.channel < recording.channels:
        return Reason.channel_missing, f"there is no channel {turn.channel}, only 0..{recording.channels - 1}"
    return None
