"""From words and speakers to turns: hand-made ones, whose turns are known."""

from pathlib import Path

import numpy as np
import pytest
from heard import item

from data_prep.config import TurnsConfig, VadConfig
from data_prep.records import (
    Clip,
    Event,
    GivenTurn,
    Span,
    Speakers,
    SpeakerSpan,
    Speech,
    TrackSpeech,
    Transcript,
    Turns,
    Word,
)
from data_prep.speech.words import aligned, changes_at_sentence_ends, speakers_of
from data_prep.stages.base import Item
from data_prep.stages.turns import TurnsStage

RATE = 16_000
SECONDS = 100
Line = tuple[str, float, float, str]  # speaker, start, end, text: words of equal length


@pytest.fixture
def stage() -> TurnsStage:
    return TurnsStage(TurnsConfig(), VadConfig())


@pytest.fixture
def silent(tmp_path: Path) -> Item:
    return item(tmp_path / "a.wav", np.zeros((2, SECONDS * RATE), np.float32), RATE, [])


def heard(item_: Item, lines: list[Line], channels: dict[str, int] | None = None) -> Item:
    """Results of the stages before, if each line is one span of speech."""
    channel_of = dict.fromkeys([line[0] for line in lines]) | (channels or {})
    tracks = sorted({channel_of[line[0]] for line in lines}, key=lambda channel: -1 if channel is None else channel)
    speech, clips = [], []
    for channel in tracks:
        of_track = sorted(line[1:] for line in lines if channel_of[line[0]] == channel)
        speech.append(TrackSpeech(channel, [Span(start, end) for start, end, _ in of_track]))
        words = [word for start, end, text in of_track for word in in_equal_parts(start, end, text)]
        clips.append(Clip(0, SECONDS, channel, " ".join(w.text for w in words), words, "en", 1.0, -0.2, 0.1, 1.5))
    spans = sorted(
        (SpeakerSpan(start, end, who, channel_of[who]) for who, start, end, _ in lines), key=lambda s: s.start
    )
    item_.results = {"vad": Speech(speech), "diarize": Speakers(spans), "transcribe": Transcript(clips)}
    return item_


def in_equal_parts(start: float, end: float, text: str) -> list[Word]:
    texts = text.split()
    edges = np.linspace(start, end, len(texts) + 1)
    return [Word(text, float(a), float(b), 0.9) for text, a, b in zip(texts, edges, edges[1:], strict=False)]


def run(stage: TurnsStage, item_: Item) -> Turns:
    (turns,) = stage.process([item_])
    return turns


def brief(turns: Turns) -> list[tuple[str, float, float, str]]:
    return [(turn.speaker, turn.start, turn.end, turn.text) for turn in turns.turns]


def test_pauses_shorter_than_the_gap_are_inside_a_turn(stage, silent):
    lines = [("a", 1, 2, "one two"), ("a", 2.9, 4, "three."), ("a", 5.1, 6, "Four.")]
    turns = run(stage, heard(silent, lines))
    # spans of speech carry 0.1 s of silence on each side: none is added before, 0.2 s after
    assert brief(turns) == [("a", 1.0, 4.2, "one two three."), ("a", 5.1, 6.2, "Four.")]
    assert [turn.number for turn in turns.turns] == [0, 1]


def test_a_turn_is_divided_by_what_another_speaker_says_in_its_pause(stage, silent):
    lines = [("a", 1, 2, "I was"), ("b", 2.05, 2.75, "what did you say"), ("a", 2.8, 4, "saying that")]
    assert [(who, text) for who, _, _, text in brief(run(stage, heard(silent, lines)))] == [
        ("a", "I was"),
        ("b", "what did you say"),
        ("a", "saying that"),
    ]


def test_backchannels_are_events(stage, silent):
    lines = [("a", 1, 2, "I was"), ("b", 2.1, 2.6, "uh huh"), ("a", 2.7, 4, "saying that")]
    turns = run(stage, heard(silent, lines))
    assert brief(turns) == [("a", 1.0, 4.2, "I was saying that")]
    assert turns.events == [Event(2.1, "b", "backchannel", "uh huh")]
    assert turns.turns[0].overlap == pytest.approx(0.5)


def test_a_short_answer_outside_another_turn_is_a_turn(stage, silent):
    lines = [("a", 1, 2, "Are you there?"), ("b", 2.3, 2.8, "Yes."), ("a", 3.2, 4, "Good.")]
    turns = run(stage, heard(silent, lines))
    assert [turn.speaker for turn in turns.turns] == ["a", "b", "a"]
    assert turns.events == []


def test_backchannels_on_the_other_channel_of_a_call(stage, silent):
    lines = [("a", 1, 5, "I was saying that"), ("b", 2, 2.5, "mhm"), ("b", 4, 9, "and then we all went")]
    turns = run(stage, heard(silent, lines, {"a": 0, "b": 1}))
    assert brief(turns) == [("a", 1.0, 5.2, "I was saying that"), ("b", 4.0, 9.2, "and then we all went")]
    assert [turn.channel for turn in turns.turns] == [0, 1]
    assert [turn.overlap for turn in turns.turns] == [0.0, 0.0]  # nobody else is on their tracks
    assert [event.text for event in turns.events] == ["mhm"]


def test_padding_never_crosses_anothers_words(stage, silent):
    wide = TurnsStage(TurnsConfig(pad_start_seconds=1.0, pad_end_seconds=1.0), VadConfig())
    lines = [
        ("a", 1, 2, "one two three four"),
        ("b", 2.12, 3, "five six seven eight"),
        ("a", 3.7, 5, "and nine more words"),
    ]
    for turns in (run(stage, heard(silent, lines)), run(wide, heard(silent, lines))):
        for turn in turns.turns:
            inside = [w.text for t in turns.turns for w in t.words if w.start < turn.end and turn.start < w.end]
            assert inside == turn.text.split()
        edges = [edge for turn in turns.turns for edge in (turn.start, turn.end)]
        assert edges == sorted(edges)
        assert edges[0] >= 0


def test_turns_that_meet_inside_speech_share_the_quietest_moment(stage, tmp_path):
    samples = np.full((1, 10 * RATE), 0.1, np.float32)
    samples[0, round(5.08 * RATE) : round(5.12 * RATE)] = 0.001  # 80 ms after the words are said to meet
    of_noise = heard(item(tmp_path / "a.wav", samples, RATE, []), [("a", 1, 5, "a b c d"), ("b", 5, 9, "e f g h")])
    of_noise.results["vad"] = Speech([TrackSpeech(None, [Span(1, 9)])])
    first, second = run(stage, of_noise).turns
    assert first.end == second.start == pytest.approx(5.1, abs=0.01)


def test_long_turns_are_divided_after_sentences_or_at_long_pauses(stage, silent):
    lines = [("a", 1 + 4 * n, 4.8 + 4 * n, f"and so on {n}" + "." * (n in (5, 14))) for n in range(20)]
    turns = run(stage, heard(silent, lines)).turns
    assert turns[0].text.endswith("5.")
    assert " ".join(turn.text for turn in turns) == " ".join(line[3] for line in lines)
    assert all(turn.words[-1].end - turn.words[0].start <= 30.0 for turn in turns)


def test_speech_without_a_pause_is_divided_between_words(stage, silent):
    turns = run(stage, heard(silent, [("a", 1, 71, " ".join(f"w{n}" for n in range(140)))])).turns
    assert " ".join(turn.text for turn in turns) == " ".join(f"w{n}" for n in range(140))
    assert all(turn.end - turn.start <= 30.4 for turn in turns)


def test_short_turns_stay_in_the_list_rejected(silent):
    stage = TurnsStage(TurnsConfig(min_seconds=1.0), VadConfig())
    turns = run(stage, heard(silent, [("a", 1, 1.5, "Yes."), ("a", 5, 9, "That is how it was.")])).turns
    assert [turn.rejection and turn.rejection.reason for turn in turns] == ["too_short", None]
    assert turns[0].text == "Yes." and "min_seconds=1.0" in turns[0].rejection.message


def test_two_at_once_is_overlap(stage, silent):
    of_both = heard(silent, [("a", 1, 4, "one two three"), ("b", 4, 6, "four five")])
    of_both.results["diarize"] = Speakers([SpeakerSpan(1, 4.5, "a"), SpeakerSpan(3.8, 6, "b")])
    assert sum(turn.overlap for turn in run(stage, of_both).turns) == pytest.approx(0.7, abs=0.002)


def test_words_move_into_speech():
    spans = [Span(1, 2), Span(3, 5)]
    words = [Word("a", 0.6, 1.2), Word("b", 1.4, 1.7), Word("c", 1.8, 3.5), Word("d", 3.5, 3.6), Word("e", 5.2, 5.6)]
    assert [(word.text, word.start, word.end) for word in aligned(words, spans)] == [
        ("a", 1, 1.2),
        ("b", 1.4, 2),  # the last word of its span ends with it
        ("c", 3, 3.5),  # said to begin before the pause
        ("d", 3.5, 3.6),
        ("e", 5, 5),  # said to come after all speech
    ]
    # what is far from the last word was not understood: it is no part of it
    assert aligned([Word("a", 1.0, 1.5)], [Span(1, 9)]) == [Word("a", 1.0, 1.5)]


def test_words_belong_to_the_larger_overlap_or_the_nearest():
    spans = [SpeakerSpan(0, 5, "a"), SpeakerSpan(1, 2, "b"), SpeakerSpan(5, 6, "b"), SpeakerSpan(9, 10, "a")]
    words = [Word("", 0, 1), Word("", 2, 3), Word("", 4.8, 5.6), Word("", 6.5, 7), Word("", 8, 8.5), Word("", 20, 21)]
    assert speakers_of(words, spans) == ["a", "a", "b", "b", "a", "a"]


GIVEN = [
    GivenTurn(0, "Ann", 0.0, 2.0, "Hello there.", 0, 7),
    GivenTurn(1, "Bob", 1.5, 3.0, "Hi.", 0),
    GivenTurn(2, "Ann", 5.0, 100.05, "To the end, and a little over it.", 1),
    GivenTurn(3, "Ann", 50.0, None, "From there to the end.", None),
    GivenTurn(4, "Bob", 6.0, 7.0, "", 0),
    GivenTurn(5, "Bob", 8.0, 8.0, "Nothing.", 0),
    GivenTurn(6, "Bob", 99.0, 101.0, "Outside.", 0),
    GivenTurn(7, "Bob", 9.0, 10.0, "Which?", 2),
    GivenTurn(8, "Bob", 11.0, 11.1, "Short.", 0),
    GivenTurn(9, "Bob", 12.0, 14.0, None, 0),
]


def test_given_turns_come_out_as_given(stage, silent):
    silent.recording.turns = GIVEN
    silent.results = {"vad": Speech([]), "transcribe": Transcript([])}
    silent.results["diarize"] = Speakers([SpeakerSpan(0.0, 2.0, "Ann", 0), SpeakerSpan(1.5, 3.0, "Bob", 0)])
    turns = {turn.text or turn.start: turn for turn in run(stage, silent).turns}
    for given in GIVEN[:4]:
        turn = turns[given.text]
        assert (turn.speaker, turn.speaker_id, turn.channel) == (given.speaker, given.speaker_id, given.channel)
        assert turn.start == given.start and turn.words == []
    assert turns["Hello there."].end == 2.0 and turns["Hello there."].rejection is None
    assert turns["Hello there."].overlap == turns["Hi."].overlap == 0.5
    assert turns["From there to the end."].end == 100.0
    reasons = {key: turn.rejection.reason for key, turn in turns.items() if turn.rejection}
    assert reasons == {
        "To the end, and a little over it.": "too_long",  # 95 s, clipped to the audio
        6.0: "empty_text",
        "Nothing.": "bad_times",
        "Outside.": "times_outside_audio",
        "Which?": "channel_missing",
        "Short.": "too_short",
        12.0: "empty_text",  # nobody was asked to transcribe it
    }
    assert turns["To the end, and a little over it."].end == 100.0
    assert "given turn 6" in turns["Outside."].rejection.message
    assert [turn.number for turn in run(stage, silent).turns] == list(range(10))


def test_given_backchannels_are_events(stage, silent):
    silent.recording.turns = [
        GivenTurn(0, "A", 0.5, 3.33, "So what do you think?"),
        GivenTurn(1, "B", 3.83, 10.58, "I think that we should wait for a while."),
        GivenTurn(2, "A", 6.0, 6.45, "Mhm."),
        GivenTurn(3, "A", 10.0, 10.5, "But why should we?"),  # four words
        GivenTurn(4, "A", 10.4, 11.0, "Why?"),  # beyond the end
        GivenTurn(5, "B", 7.0, 7.5, "well"),  # the same speaker
        GivenTurn(6, "A", 11.08, 13.6, "And then we go home."),
    ]
    silent.results = {"vad": Speech([]), "transcribe": Transcript([])}
    silent.results["diarize"] = Speakers([SpeakerSpan(3.83, 10.58, "B"), SpeakerSpan(6.0, 6.45, "A")])
    turns = run(stage, silent)
    assert turns.events == [Event(6.0, "A", "backchannel", "Mhm.")]
    rejected = {turn.text: turn.rejection.reason for turn in turns.turns if turn.rejection}
    assert rejected == {"Mhm.": "backchannel"}
    (outer,) = (turn for turn in turns.turns if turn.start == 3.83)
    assert outer.overlap == pytest.approx(0.45)


def test_given_turns_of_a_moment_are_events_within_another_turn_and_never_turns(stage, silent):
    silent.recording.turns = [
        GivenTurn(0, "A", 1.0, 4.0, "So what do you think?"),
        GivenTurn(1, "B", 2.5, 2.5, "mhm"),
        GivenTurn(2, "A", 3.0, 3.0, "well"),  # the same speaker
        GivenTurn(3, "B", 3.5, 3.5, "that is what you say"),  # five words
        GivenTurn(4, "B", 5.0, 5.0, "yes"),  # within no turn
    ]
    silent.results = {"vad": Speech([]), "diarize": Speakers([]), "transcribe": Transcript([])}
    turns = run(stage, silent)
    assert turns.events == [Event(2.5, "B", "backchannel", "mhm")]
    assert [str(turn.rejection and turn.rejection.reason) for turn in turns.turns] == [
        "None", "backchannel", "bad_times", "bad_times", "bad_times"
    ]  # fmt: skip


def test_given_texts_are_cleaned_and_what_is_no_speech_or_listed_twice_is_rejected(stage, silent):
    silent.recording.turns = [
        GivenTurn(0, "a", 1.0, 3.0, "Well,\x00 that\u200b's\nit."),
        GivenTurn(1, "a", 4.0, 6.0, "<laugh> [noise] {breath} (()) &lt;b&gt;"),
        GivenTurn(2, "a", 1.0, 3.0, "Well,\x00 that\u200b's\nit."),
        GivenTurn(3, "a", 7.0, 9.0, "..."),
    ]
    silent.results = {"vad": Speech([]), "diarize": Speakers([]), "transcribe": Transcript([])}
    turns = run(stage, silent).turns
    assert [(turn.text, turn.rejection and str(turn.rejection.reason)) for turn in turns[:2]] == [
        ("Well, that's it.", None),
        ("Well, that's it.", "duplicate_text"),
    ]
    assert [turn.rejection.reason for turn in turns[2:]] == ["empty_text", "empty_text"]
    assert "only signs or markup" in turns[2].rejection.message


def test_overlap_is_unknown_where_the_diarizer_gives_one_speaker_at_a_time(stage, silent):
    of_both = heard(silent, [("a", 1, 4, "one two three"), ("b", 4, 6, "four five")])
    of_both.results["diarize"].one_at_a_time = True
    assert [turn.overlap for turn in run(stage, of_both).turns] == [None, None]


@pytest.mark.parametrize(
    ("text", "speakers", "expected"),
    [
        ("She owes me a favor. Then call her.", "aaaabbbb", "aaaaabbb"),
        ("I never liked it anyway. And it was", "aaaabbbb", "aaaaabbb"),
        ("Good. Then call her. And go home now", "aaaaabbb", "aaaabbbb"),
        ("Good. Then call her. And go home now", "aaaaaabb", "aaaabbbb"),
        ("Good. Then call her and go home now.", "aaaaaabb", "aaaaaabb"),  # none is near
        ("Really? Yes. And then we went home now.", "abbbbbbb", "abbbbbbb"),  # it is one already
        ("I am so. Tired. Of all that. Yes.", "aaabbbba", "aaabbbba"),
        ("I was there. You? Me, too. And so on.", "aaaabbbbb", "aaaabbbbb"),
    ],
)
def test_a_change_of_speaker_moves_to_the_end_of_a_sentence_nearby(text, speakers, expected):
    words = in_equal_parts(0.0, 0.2 * len(text.split()), text)
    clips = [Clip(0.0, 60.0, None, text, [], "en", 1.0, -0.2, 0.1, 1.5)] * len(words)
    assert "".join(changes_at_sentence_ends(words, list(speakers), clips)) == expected
    slow = in_equal_parts(0.0, 2.0 * len(text.split()), text)
    assert "".join(changes_at_sentence_ends(slow, list(speakers), clips)) == speakers


def test_a_change_between_speakers_who_were_heard_by_themselves_stays():
    words = in_equal_parts(0.0, 1.6, "She owes me a favor. Then call her.")
    a, b = (Clip(0.0, 60.0, None, "", [], "en", 1.0, -0.2, 0.1, 1.5) for _ in "ab")
    assert "".join(changes_at_sentence_ends(words, list("aaaabbbb"), [a] * 4 + [b] * 4)) == "aaaabbbb"


def test_given_turns_without_text_get_that_of_their_own_clips(stage, silent):
    silent.recording.turns = [GivenTurn(0, "a", 1.0, 40.0), GivenTurn(1, "b", 2.0, 3.1), GivenTurn(2, "b", 41.0, 42.0)]

    def clip(start: float, end: float, text: str) -> Clip:
        return Clip(start, end, None, text, in_equal_parts(start, end, text), "en", 1.0, -0.5, 0.0, 1.0)

    clips = [clip(1.0, 25.0, "One two"), clip(25.0, 40.0, "three."), clip(2.0, 3.1, "No?"), clip(41.0, 42.0, "")]
    silent.results = {"vad": Speech([]), "diarize": Speakers([]), "transcribe": Transcript(clips)}
    turns = run(stage, silent).turns
    assert [turn.text for turn in turns] == ["One two three.", "No?", ""]
    assert [len(turn.words) for turn in turns] == [3, 1, 0]
    assert [turn.rejection and turn.rejection.reason for turn in turns] == [None, None, "no_words"]
