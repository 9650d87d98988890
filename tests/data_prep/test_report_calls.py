"""Words that both sides of a call say at once, as of a call with crosstalk."""

from __future__ import annotations

from typing import Any

from data_prep.report.calls import words_of_call


def turn(channel: int | None, start: float, text: str) -> dict[str, Any]:
    """A second for every word."""
    said = [[word, start + n, start + n + 0.5, 0.9] for n, word in enumerate(text.split())]
    return {"channel": channel, "start": start, "end": start + len(said), "words": said}


def test_an_echo_is_said_twice_and_another_conversation_is_not():
    said = turn(0, 10.0, "Shall we go now?")
    assert words_of_call([said, turn(1, 10.5, "shall we go now")]) == (8, 8)  # an echo of half a second
    assert words_of_call([said, turn(1, 14.0, "We go now.")]) == (7, 0)  # an answer
    assert words_of_call([said, turn(1, 12.0, "Now, yes.")]) == (6, 2)  # one word of both
    assert words_of_call([said, turn(0, 10.5, "Shall we go now?")]) == (0, 0)  # one channel
    assert words_of_call([said, turn(1, 10.5, "Shall") | {"words": None}]) == (4, 0)  # a given text has no times
