"""Assignment of turns to conversations, and the samples made of them; one test for each rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from csm.codec import CodecInfo
from csm.data.sample import Event as StoredEvent
from csm.data.sample import Sample, sample_from_members, sample_to_members
from csm.frames import TurnTokens, conversation_frames
from data_prep.config import ConversationConfig
from data_prep.packing.conversation import (
    EncodedRecording,
    conversations,
    key_stem,
    number_speakers,
    positions_of,
    slug,
    split_of,
)
from data_prep.reasons import Reason
from data_prep.records import (
    DraftTurn,
    Encoded,
    EncodedTurn,
    Event,
    Locator,
    Recording,
    Rejection,
    Scores,
    Turns,
    TurnScore,
    Word,
)

CODEC = CodecInfo("spectral", "0123456789abcdef", num_codebooks=3, codebook_size=50, frame_rate=12.5, sample_rate=24000)
CFG = ConversationConfig()


def recording(**changes: Any) -> Recording:
    values = {
        "id": "calls/Call 17",
        "source": "calls",
        "audio": "17.wav",
        "locator": Locator("/data/17.wav"),
        "group": "anna",
        "split": None,
        "lang": "en",
        "licence": "cc0",
        "sha256": "0" * 64,
        "seconds": 100.0,
        "sample_rate": 8000,
        "channels": 2,
        "codec_format": "wav/pcm_16",
    }
    return Recording(**values | changes)


def draft(number: int, start: float, end: float, speaker: str = "a", **changes: Any) -> DraftTurn:
    values = {
        "speaker_id": None,
        "channel": None,
        "text": f"turn {number}",
        "words": [],
        "overlap": 0.0,
        "lang": None,
        "lang_prob": None,
        "avg_logprob": None,
        "no_speech_prob": None,
        "compression_ratio": None,
        "rejection": None,
    }
    return DraftTurn(number=number, speaker=speaker, start=start, end=end, **values | changes)


def row(*lengths: float, pause: float = 0.5) -> list[DraftTurn]:
    """Turns of these lengths in seconds, with a pause before each."""
    ends = np.cumsum(np.array(lengths) + pause)
    return [draft(i, round(float(end) - lengths[i], 6), float(end)) for i, end in enumerate(ends)]


def made(
    drafts: list[DraftTurn],
    scores: dict[int, dict[str, Any]] | None = None,
    events: list[Event] | None = None,
    rejected: list[Rejection] | None = None,
    **changes: Any,
) -> EncodedRecording:
    """All turns encoded that no stage rejected: 12.5 frames a second."""
    left_out = {rejection.turn for rejection in rejected or []} | {d.number for d in drafts if d.rejection}
    encoded, rng = [], np.random.default_rng(0)
    for d in drafts:
        if d.number not in left_out:
            frames = max(1, round((d.end - d.start) * 12.5))
            codes = rng.integers(1, 50, (3, frames)).astype("<u2").tobytes()
            encoded.append(EncodedTurn(d.number, frames, codes, gain_db=1.5))
    empty = {"lufs": None, "clipped": None, "bandwidth": None, "ovrl": None, "sig": None, "bak": None}
    found = scores and Scores([TurnScore(n, **empty | values, fingerprint=[]) for n, values in scores.items()], "0")
    return EncodedRecording(recording(**changes), Turns(drafts, events or []), found, Encoded(encoded, rejected or []))


def run(
    given: EncodedRecording, rejections: dict[int, Rejection] | None = None, **options: Any
) -> tuple[list[Sample], dict[int, Rejection]]:
    return conversations(given, rejections or {}, CODEC, "train", "c0ffee", replace(CFG, **options))


def texts(given: EncodedRecording, rejections: dict[int, Rejection] | None = None, **options: Any) -> list[list[int]]:
    """Numbers of the turns of each conversation. Every turn is in one sample or is rejected, never both."""
    samples, ends = run(given, rejections, **options)
    numbers = [[int(turn.text.split()[-1]) for turn in sample.turns] for sample in samples]
    assert Counter([n for ns in numbers for n in ns] + list(ends)) == Counter(d.number for d in given.turns.turns)
    return numbers


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ((1, 2, 3), {}, [[0, 1, 2]]),
        ((4, 3, 4, 2, 1), {"max_seconds": 8.0}, [[0, 1], [2, 3, 4]]),
        ((1, 9, 1), {"max_seconds": 8.0}, [[0], [1], [2]]),  # longer than the limit: by itself
        ((1, 1, 1, 1, 1), {"max_turns": 4}, [[0, 1, 2, 3], [4]]),
    ],
)
def test_limits_divide_between_turns(lengths, options, expected):
    assert texts(made(row(*lengths)), **options) == expected


def test_position_budget_counts_what_the_model_reads():
    """The estimate for a text of bytes that are a token each, against the real layout."""
    text, frames = "x" * 32, 25
    tokens = [1, *range(10), 2, 3, 4, 5]  # BOS "[" "0" "]" EOS around 10 tokens, at 3.2 bytes each
    layout = conversation_frames([TurnTokens(tokens, torch.ones(3, frames, dtype=torch.int64))], 3)
    assert positions_of(text, frames) == len(layout) == 41
    drafts = [draft(i, 3.0 * i, 3.0 * i + 2.0, text="x" * 32 + f" {i}") for i in range(6)]
    each = positions_of(drafts[0].text, 25)
    assert texts(made(drafts), max_seq_len=3 * each) == [[0, 1, 2], [3, 4, 5]]
    assert texts(made(drafts), max_seq_len=3 * each - 1) == [[0, 1], [2, 3], [4, 5]]
    assert texts(made(drafts), max_seq_len=1) == [[i] for i in range(6)]


def test_what_is_left_out_inside_a_kept_turn_ends_nothing():
    drafts = [draft(0, 0.5, 3.3), draft(1, 3.8, 10.5, "b"), draft(2, 6.0, 6.5, overlap=0.5), draft(3, 11.0, 13.6)]
    given = made(drafts)
    assert texts(given) == [[0, 1, 3]]
    assert run(given)[1][2].reason == Reason.overlap
    longer = replace(drafts[2], end=10.9, overlap=4.5)  # goes on after the turn: what it says is missing
    assert texts(made([*drafts[:2], longer, drafts[3]])) == [[0, 1], [3]]


def test_unknown_overlap_breaks_no_limit_and_is_stored_as_unknown():
    ((sample,), rejected) = run(made([draft(0, 0, 5, overlap=None), draft(1, 6, 8, "b", overlap=0.0)]))
    assert [turn.overlap for turn in sample.turns] == [None, 0.0] and not rejected
    assert all(turn.loss for turn in sample.turns)
    again = _stored(sample)
    assert [turn.overlap for turn in again.turns] == [None, 0.0]


def _stored(sample: Sample) -> Sample:
    members = sample_to_members(sample)
    return sample_from_members(members["codes.npy"], members["json"], "here")


def test_long_silence_ends_a_conversation():
    drafts = [draft(0, 0, 5), draft(1, 1, 2), draft(2, 13, 14), draft(3, 22.5, 23)]
    assert texts(made(drafts)) == [[0, 1, 2], [3]]  # 8 s after the end of turn 0; 8.5 s
    assert texts(made(drafts), max_gap_seconds=7.9) == [[0, 1], [2], [3]]


def test_nothing_is_joined_over_a_turn_that_is_left_out():
    rejection = Rejection(reason=Reason.quality, message="poor")
    stage = [replace(d, rejection=rejection if d.number == 1 else None) for d in row(1, 1, 1)]
    assert texts(made(stage)) == [[0], [2]]
    assert texts(made(row(1, 1, 1)), {1: rejection}) == [[0], [2]]  # by a limit
    by_codec = Rejection(turn=1, reason=Reason.end_frame, message="zeros")
    assert texts(made(row(1, 1, 1), rejected=[by_codec])) == [[0], [2]]
    samples, rejections = run(made(stage, rejected=[replace(by_codec, turn=2)]), {0: rejection})
    assert samples == [] and {n: rejection.reason for n, rejection in rejections.items()} == {
        0: "quality",
        1: "quality",
        2: "end_frame",
    }


def test_conversation_goes_on_around_a_backchannel():
    drafts = row(2, 1, 2)
    drafts[1] = replace(drafts[1], rejection=Rejection(reason=Reason.backchannel, message="kept as an event"))
    assert texts(made(drafts)) == [[0, 2]]


def test_overlap_makes_context_or_ends():
    drafts = [
        replace(d, overlap=overlap) for d, overlap in zip(row(2, 2, 2, 2, 2), (0.3, 0.31, 1.0, 1.01, 0), strict=True)
    ]
    (first, second), rejections = run(made(drafts))
    assert [turn.loss for turn in first.turns] == [True, False, False] and len(second.turns) == 1
    assert [turn.overlap for turn in first.turns] == [0.3, 0.31, 1.0]
    assert rejections[3].reason == "overlap" and "0.51 of it" in rejections[3].message
    (whole,), rejections = run(made(drafts), context_overlap=None, max_overlap=None)
    assert all(turn.loss for turn in whole.turns) and not rejections


def test_speaking_at_once_on_two_tracks_costs_nothing():
    """Stage `turns` counts overlap on the turn's own track alone."""
    (sample,), rejections = run(made([draft(0, 0, 4, "x", channel=0), draft(1, 0, 3, "y", channel=1)]))
    assert [(turn.loss, turn.gap, turn.channel) for turn in sample.turns] == [(True, 0.0, 0), (True, -4.0, 1)]
    assert not rejections


def test_poor_quality_is_context_only():
    scores = {0: {"ovrl": 2.9}, 1: {"ovrl": 3.0}, 2: {}}
    (sample,), _ = run(made(row(1, 1, 1), scores), context_ovrl=3.0)
    assert [turn.loss for turn in sample.turns] == [False, True, True]  # what was not measured passes
    (sample,), _ = run(made(row(1, 1, 1), scores))
    assert all(turn.loss for turn in sample.turns)


def test_conversation_of_context_alone_is_not_kept():
    samples, rejections = run(made(row(1, 1), {0: {"ovrl": 2.0}, 1: {"ovrl": 2.0}}), context_ovrl=3.0)
    assert (
        samples == []
        and {rejection.reason for rejection in rejections.values()} == {"context_only"}
        and len(rejections) == 2
    )


def test_short_conversations_are_left_out_with_their_reason():
    given = made(row(3, 3, 3, 3, 3))
    assert texts(given, max_turns=2, min_turns=2) == [[0, 1], [2, 3]]
    assert texts(given, max_turns=2, min_seconds=6.0) == [[0, 1], [2, 3]]
    _, rejections = run(given, max_turns=2, min_turns=2)
    assert rejections[4].reason == "short_conversation" and "1 turns and 3.00 s of speech" in rejections[4].message


def test_switch_of_language_ends_a_conversation():
    langs = ["de", None, "de", "en", "en"]
    drafts = [replace(d, lang=lang, lang_prob=0.5) for d, lang in zip(row(1, 1, 1, 1, 3), langs, strict=True)]
    drafts[4].lang_prob = 0.9
    assert texts(made(drafts, lang=None)) == [[0, 1, 2], [3, 4]]
    german, english = run(made(drafts, lang=None))[0]
    assert (german.lang, german.lang_prob) == ("de", 0.5) and (english.lang, english.lang_prob) == ("en", 0.8)
    (unknown,), _ = run(made(row(1), lang=None))
    assert (unknown.lang, unknown.lang_prob) == ("und", None)


def test_speakers_are_numbered_by_appearance_and_given_numbers_kept():
    assert number_speakers(["bo", "al", "bo", "cy"]) == [0, 1, 0, 2]
    assert number_speakers([1, 0, 1]) == [1, 0, 1]
    assert number_speakers([5, "al", 5]) == [0, 1, 0]
    drafts = [replace(d, speaker=speaker) for d, speaker in zip(row(1, 1, 1, 1), "xyzy", strict=True)]
    first, second = run(made(drafts), max_turns=2)[0]
    assert [turn.speaker for turn in first.turns + second.turns] == [0, 1, 0, 1]  # anew in every conversation
    numbered = [replace(d, speaker_id=speaker) for d, speaker in zip(drafts, (7, 3, 7, 3), strict=True)]
    assert [turn.speaker for turn in run(made(numbered))[0][0].turns] == [7, 3, 7, 3]


def test_events_inside_are_carried():
    drafts = [draft(0, 1, 3, "x"), draft(1, 3, 5, "y"), draft(2, 20, 22, "y")]
    events = [Event(t, speaker, "backchannel", "mhm") for t, speaker in ((0.5, "x"), (2.0, "y"), (4.0, "z"), (21, "x"))]
    first, second = run(made(drafts, events=events))[0]
    assert first.events == [StoredEvent(2.0, 1, "backchannel", "mhm"), StoredEvent(4.0, 2, "backchannel", "mhm")]
    assert second.events == [StoredEvent(21, 1, "backchannel", "mhm")]


def test_consecutive_conversations_are_linked():
    samples, _ = run(made(row(1, 1, 1, 1, 1)), max_turns=2)
    keys = [sample.key for sample in samples]
    assert [sample.prev for sample in samples] == [None, *keys[:-1]]
    assert [sample.next for sample in samples] == [*keys[1:], None]


def test_sample_says_everything_and_survives_storage():
    words = [Word("Hello,", 1.004, 1.31, 0.987), Word("you.", 1.35, 1.9, None)]
    drafts = [
        draft(0, 1.0, 2.0, "x", words=words, channel=1, avg_logprob=-0.25, lang_prob=0.99),
        draft(1, 1.5, 3.5, "y", overlap=0.25, channel=0),
    ]
    scores = {0: {"lufs": -23.04567, "bandwidth": 3900.0, "ovrl": 3.5}, 1: {"bandwidth": 3700.0, "clipped": 0.0}}
    given = made(drafts, scores)
    (sample,), _ = run(given)
    stored = sample_to_members(sample)
    sample = sample_from_members(stored["codes.npy"], stored["json"], "here")
    first, second = sample.turns
    assert first.words == [["Hello,", 1.0, 1.31, 0.99], ["you.", 1.35, 1.9, None]] and second.words is None
    assert first.quality == {
        **{"lufs": -23.0457, "bandwidth": 3900.0, "ovrl": 3.5},
        **{"lang_prob": 0.99, "avg_logprob": -0.25, "gain_db": 1.5},
    }
    assert second.quality == {"bandwidth": 3700.0, "clipped": 0.0, "gain_db": 1.5}
    assert (first.gap, second.gap, second.overlap, first.channel) == (0.0, -0.5, 0.25, 1)
    assert (sample.start, sample.end, sample.bandwidth, sample.num_speakers) == (1.0, 3.5, 3800.0, 2)
    assert (sample.sample_rate, sample.channels, sample.prep, sample.licence) == (8000, 2, "c0ffee", "cc0")
    for stored, encoded in zip(sample.turns, given.encoded.turns, strict=True):
        assert (
            sample.codes[:, stored.start_frame : stored.start_frame + stored.num_frames].astype("<u2").tobytes()
            == encoded.codes
        )


def test_keys_are_their_recordings_own():
    keys = {key_stem(recording(id=f"calls/{name}")) for name in ("Call 17", "call-17", "CALL 17", "x" * 90, "x" * 91)}
    assert len(keys) == 5
    assert key_stem(recording()).startswith("calls-call-17-")
    assert len(key_stem(recording(id="calls/" + "x" * 90, source="calls" * 9))) <= 74  # then "-00000"
    assert slug("Show 7/Ep.12 (café)", 32) == "show-7-ep-12-caf" and slug("...", 32) == "x"


def test_split_keeps_groups_together_and_follows_what_is_given():
    drawn = [split_of(f"show {n}", None, 0.2, seed=3) for n in range(2000)]
    assert 0.17 < drawn.count("val") / 2000 < 0.23
    assert drawn == [split_of(f"show {n}", None, 0.2, seed=3) for n in range(2000)]
    assert drawn != [split_of(f"show {n}", None, 0.2, seed=4) for n in range(2000)]
    assert split_of("show 1", "val", 0.0, seed=3) == "val" and split_of("show 1", None, 0.0, seed=3) == "train"
