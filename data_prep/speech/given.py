"""Given turns, checked against the audio: their times and channels as the stages use them."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Recording, Rejection

END_TOLERANCE_SECONDS = 0.1
"""How far a turn may reach beyond the audio (annotation tools round) before its times are taken to be wrong."""


@dataclass
class CheckedTurn:
    """A given turn: clipped to the audio, or with the reason why it cannot be."""

    given: GivenTurn
    start: float
    end: float
    rejection: Rejection | None


def checked_turns(recording: Recording) -> list[CheckedTurn]:
    """The given turns of a recording that has some, by start; turns that start together stay in the user's order."""
    assert recording.turns is not None
    turns = [_checked(turn, recording) for turn in recording.turns]
    return sorted(turns, key=lambda turn: (turn.start, turn.given.number))


def _checked(turn: GivenTurn, recording: Recording) -> CheckedTurn:
    end = recording.seconds if turn.end is None else turn.end
    problem = _problem(turn, end, recording)
    if problem:
        reason, message = problem
        return CheckedTurn(turn, turn.start, end, Rejection(reason.value, f"given turn {turn.number}: {message}"))
    return CheckedTurn(turn, turn.start, min(end, recording.seconds), None)


def _problem(turn: GivenTurn, end: float, recording: Recording) -> tuple[Reason, str] | None:
    if turn.text is not None and not turn.text.strip():
        return Reason.empty_text, "its text is empty"
    if not end > turn.start:
        return Reason.bad_times, f"it ends at {end} s, not after its start at {turn.start} s"
    if turn.start < 0 or turn.start >= recording.seconds or end > recording.seconds + END_TOLERANCE_SECONDS:
        audio = f"the audio of {recording.seconds:.2f} s"
        return Reason.times_outside_audio, f"its times {turn.start}..{end} s are outside {audio}"
    if turn.channel is not None and not 0 <= turn.channel < recording.channels:
        return Reason.channel_missing, f"there is no channel {turn.channel}, only 0..{recording.channels - 1}"
    return None
