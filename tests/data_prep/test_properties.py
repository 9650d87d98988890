"""Properties that hold for whatever turns, words, gaps, overlaps, channels, lengths and rates there are."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from heard import draft, item, recording
from hypothesis import given, settings
from hypothesis import strategies as st

from csm.codec import CodecInfo
from data_prep.audio.recording import RecordingAudio
from data_prep.config import ConversationConfig, ScoreConfig, TurnsConfig, VadConfig
from data_prep.packing.conversation import EncodedRecording, conversations
from data_prep.packing.ledger import account
from data_prep.records import (
    Clip,
    DraftTurn,
    Encoded,
    EncodedTurn,
    GivenTurn,
    Recording,
    Rejection,
    Span,
    Speakers,
    SpeakerSpan,
    Speech,
    TrackSpeech,
    Transcript,
    Turns,
    Word,
)
from data_prep.speech.fingerprint import fingerprint
from data_prep.speech.words import checked_turns
from data_prep.stages.base import Item
from data_prep.stages.score import ScoreStage, bandwidth, clipped, gating, loudness
from data_prep.stages.turns import TurnsStage

RATE = 16_000
SECONDS = 30.0
CODEC = CodecInfo("spectral", "0123456789abcdef", num_codebooks=3, codebook_size=50, frame_rate=12.5, sample_rate=24000)


def lengths_and_rates(count: int) -> list[tuple[int, int]]:
    """Samples of 0.01 to 2 s, and rates: four of five are common ones."""
    rng = np.random.default_rng(0)
    common = rng.choice([8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000], count)
    rates = np.where(rng.random(count) < 0.8, common, rng.integers(4000, 200_000, count))
    lengths = (rates * rng.uniform(0.01, 2.0, count)).astype(int) + 1
    return list(zip(lengths.tolist(), rates.tolist(), strict=True))


def test_no_length_at_any_rate_fails_to_be_measured():
    """200,000 lengths and rates: pyloudnorm asks for at least one whole block, as it computes it."""
    failed = 0
    for samples, rate in lengths_and_rates(200_000):
        block, measured = gating(samples, rate)
        failed += not (0 < measured <= samples and measured >= block * rate)
    assert failed == 0


@pytest.mark.slow
def test_every_measure_takes_all_lengths_at_all_rates():
    """2,000 lengths and rates of white noise at -20 dBFS: a quarter of a minute of a core."""
    noise = (0.1 * np.random.default_rng(0).standard_normal(400_001)).astype(np.float32)
    for samples, rate in lengths_and_rates(2_000):
        audio, case = noise[:samples], (samples, rate)
        assert -22 < loudness(audio, rate) < -14, case
        assert clipped(audio) == 0.0, case
        highest = bandwidth(audio, rate)
        assert highest is None if samples < round(0.032 * rate) else 0.45 * rate < highest <= 0.5 * rate, case
        assert len(fingerprint(audio)) == max(0, 1 + (samples - 24_000) // 2000), case


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.sampled_from([4000, 8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000, 191_999]))
def test_score_takes_turns_of_any_length(samples, rate):
    with tempfile.TemporaryDirectory() as folder:
        audio = np.random.default_rng(samples).standard_normal((1, samples)).astype(np.float32) * 0.1
        of_noise = item(Path(folder) / "a.wav", audio, rate, [draft(0, 0.0, samples / rate)])
        (scores,) = ScoreStage(ScoreConfig()).process([of_noise])
    assert scores.turns[0].clipped == 0.0
    assert scores.turns[0].lufs is None or -60 < scores.turns[0].lufs < 0  # None: too short to be heard


# ------------------------------------------------------------------------------------------------- turns from words


@functools.cache
def silence() -> Recording:
    folder = tempfile.mkdtemp(prefix="csm-silence-")
    return item(Path(folder) / "a.wav", np.zeros((2, round(SECONDS * RATE)), np.float32), RATE, []).recording


def of_silence(turns: list[GivenTurn] | None = None) -> Item:
    made = silence()
    values = {"locator": made.locator, "turns": turns}
    with_turns = recording(SECONDS, RATE, 2, **values)
    return Item(with_turns, RecordingAudio(with_turns), {})


times = st.floats(0.0, SECONDS - 0.5).map(lambda time: round(time, 2))
said = st.lists(
    st.tuples(times, st.floats(0.05, 6.0), st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=12
)


@st.composite
def heard(draw: st.DrawFn) -> Item:
    """Detected speech, speakers and words of one mixed track, or of two."""
    made = of_silence()
    speech, spans, clips = [], [], []
    for channel in draw(st.sampled_from([(None,), (0, 1)])):
        lines = sorted(draw(said))
        track: list[Span] = []
        words: list[Word] = []
        for start, seconds, who, count in lines:
            first = max(start, track[-1].end + 0.05 if track else 0.0)
            last = min(first + seconds, SECONDS)
            if last - first < 0.02:
                continue
            track.append(Span(first, last))
            spans.append(SpeakerSpan(first, last, who if channel is None else f"channel{channel}", channel))
            shift = draw(st.floats(-0.4, 0.4))
            edges = np.clip(np.linspace(first, last, count + 1) + shift, 0, SECONDS).tolist()
            ends = draw(st.sampled_from(["", ".", "?"]))
            words += [Word(f"w{len(words) + i}{ends}", a, b, 0.9) for i, (a, b) in enumerate(pairwise(edges))]
        if not track:
            track, spans = [Span(0.0, 1.0)], [*spans, SpeakerSpan(0.0, 1.0, "a", channel)]
            words = [Word("w", 0.1, 0.9, 0.9)]
        words.sort(key=lambda word: word.start)
        speech.append(TrackSpeech(channel, track))
        clips.append(Clip(0.0, SECONDS, channel, "", words, "en", 1.0, -0.2, 0.1, 1.5))
    spans.sort(key=lambda span: span.start)
    made.results = {"vad": Speech(speech), "diarize": Speakers(spans), "transcribe": Transcript(clips)}
    return made


@settings(max_examples=80, deadline=None)
@given(heard())
def test_made_turns_hold_every_word_once_and_every_sound_once(made):
    (turns,) = TurnsStage(TurnsConfig(), VadConfig()).process([made])
    given_words = [word.text for clip in made.results["transcribe"].clips for word in clip.words]
    found = [word.text for turn in turns.turns for word in turn.words]
    found += [text for event in turns.events for text in event.text.split()]
    assert Counter(found) == Counter(given_words)
    for turn in turns.turns:
        assert 0.0 <= turn.start <= turn.end <= SECONDS and turn.text == " ".join(word.text for word in turn.words)
        assert turn.rejection is not None or turn.end - turn.start >= 0.2
        for word in turn.words:  # no word without its sound; an edge may cut off half of it
            assert turn.start <= (word.start + word.end) / 2 + 0.011 and (word.start + word.end) / 2 <= turn.end + 0.011
    for channel in {turn.channel for turn in turns.turns}:  # no sound twice
        on_track = [turn for turn in turns.turns if turn.channel == channel]
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(on_track))
    check_accounts(made.recording, made.results["vad"], turns)


any_time = st.one_of(times, st.floats(-5.0, 40.0))
any_turn = st.tuples(
    any_time,
    st.one_of(st.none(), st.floats(-1.0, 12.0)),
    st.sampled_from(["Ann", "Bob", "Cid"]),
    st.sampled_from(["Mhm.", "Yes.", "And then we went home together.", "", "<noise>", "...", "Well,\x00 no."]),
    st.sampled_from([None, None, 0, 1, 2]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(any_turn, max_size=14))
def test_given_turns_are_kept_or_rejected_and_all_time_is_accounted_for(turns):
    annotated = [
        GivenTurn(n, who, start, None if seconds is None else start + seconds, text, channel)
        for n, (start, seconds, who, text, channel) in enumerate(turns)
    ]
    made = of_silence(annotated)
    checked = [turn for turn in checked_turns(made.recording) if turn.rejection is None]
    tracks = sorted({turn.given.channel for turn in checked}, key=str)
    speech = Speech([TrackSpeech(channel, []) for channel in tracks])
    spans = [SpeakerSpan(turn.start, turn.end, turn.given.speaker, turn.given.channel) for turn in checked]
    made.results = {"vad": speech, "diarize": Speakers(spans), "transcribe": Transcript([])}
    (found,) = TurnsStage(TurnsConfig(), VadConfig()).process([made])
    assert len(found.turns) == len(annotated)
    rejected = Counter(turn.rejection.reason.value for turn in found.turns if turn.rejection)
    assert rejected["backchannel"] == len(found.events)
    kept = [turn for turn in found.turns if turn.rejection is None]
    for turn in kept:
        assert 0.0 <= turn.start < turn.end <= SECONDS and turn.text and turn.channel in (None, 0, 1)
        assert turn.overlap is not None and -1e-3 <= turn.overlap <= turn.end - turn.start + 1e-3
    same = Counter((turn.speaker, turn.channel, turn.start, turn.end, turn.text) for turn in kept)
    assert all(count == 1 for count in same.values())
    check_accounts(made.recording, speech, found)


def check_accounts(of: Recording, speech: Speech, turns: Turns) -> None:
    """Every turn is in one conversation or is rejected; hours in are hours kept and hours lost, to the millisecond."""
    encoded = [_encoded(turn) for turn in turns.turns if turn.rejection is None]
    samples, rejected = conversations(
        EncodedRecording(of, turns, None, Encoded(encoded, [])), {}, CODEC, "train", "c0ffee", ConversationConfig()
    )
    starts = [turn.start for sample in samples for turn in sample.turns]
    assert len(starts) + len(rejected) == len(turns.turns)
    for sample in samples:
        assert [turn.start for turn in sample.turns] == sorted(turn.start for turn in sample.turns)
        assert sum(turn.num_frames for turn in sample.turns) == sample.codes.shape[1]
    outcomes: dict[int, Rejection | None] = {turn.number: rejected.get(turn.number) for turn in turns.turns}
    rows = account(of, speech, turns, outcomes, None)
    channels = {track.channel for track in speech.tracks} | {
        turn.channel for turn in turns.turns if turn.channel in (None, 0, 1)
    }
    assert sum(row.ms for row in rows) == round(of.seconds * 1000) * max(1, len(channels))


def _encoded(turn: DraftTurn) -> EncodedTurn:
    frames = max(1, round((turn.end - turn.start) * 12.5))
    return EncodedTurn(turn.number, frames, np.ones((3, frames), "<u2").tobytes(), 0.0)
