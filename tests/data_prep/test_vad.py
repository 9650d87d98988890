"""Stage `vad` on the bundled recordings: where speech is, and which channels are tracks."""

import numpy as np
import pytest
import torch
from heard import demo_recordings, item
from silero_vad import load_silero_vad
from silero_vad.sequence_vad import get_speech_timestamps_sequence

from data_prep.config import VadBackend, VadConfig
from data_prep.reasons import RejectedRecording
from data_prep.records import GivenTurn, Span, Speech
from data_prep.speech.crosstalk import echo_delay
from data_prep.stages.base import Item
from data_prep.stages.vad import VadStage

RATE = 16_000


@pytest.fixture(scope="module")
def stage() -> VadStage:
    return VadStage(VadConfig())


@pytest.fixture(scope="module")
def voices() -> np.ndarray:
    """70 s of speech and silence by turns, float32 [N]."""
    gap = np.zeros(RATE // 2, np.float32)
    return np.concatenate([part for audio in demo_recordings().values() for part in (audio, gap)])[: 70 * RATE]


def test_spans_are_those_of_the_package_for_the_whole_recording(stage, voices, tmp_path):
    # longer than a block, so that the model's state must cross from one to the next
    (speech,) = stage.process([item(tmp_path / "a.wav", voices[None], RATE, [])])
    expected = get_speech_timestamps_sequence(
        voices,
        load_silero_vad(sequence=True),
        threshold=0.5,
        min_speech_duration_ms=250,
        min_silence_duration_ms=300,
        speech_pad_ms=100,
    )
    assert len(expected) > 10
    assert speech.tracks[0].channel is None
    assert speech.tracks[0].spans == [Span(span["start"] / RATE, span["end"] / RATE) for span in expected]


def test_loading_the_model_leaves_torchs_threads_alone(voices, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        VadStage(VadConfig()).process([item(tmp_path / "a.wav", voices[None, : 5 * RATE], RATE, [])])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def call(voices: np.ndarray, echo: float) -> np.ndarray:
    """Two speakers by turns of 5 s, [2, N], each also heard on the other's channel at `echo` of its amplitude."""
    first = (np.arange(len(voices)) // (5 * RATE)) % 2 == 0
    sides = np.stack([np.where(first, voices, 0), np.where(first, 0, voices)])
    return (sides + echo * sides[::-1]).astype(np.float32)


def stereo_music_like(voices: np.ndarray) -> np.ndarray:
    """Voices in the middle over something different on each side."""
    sides = 0.02 * np.random.default_rng(0).standard_normal((2, len(voices)))
    return (voices + sides).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "tracks"),
    [
        pytest.param(lambda v: call(v, 0.0), [0, 1], id="call"),
        pytest.param(lambda v: call(v, 0.05) + 0.0003, [0, 1], id="call with echo"),
        pytest.param(lambda v: np.stack([v, v]), [None], id="dual mono"),
        pytest.param(lambda v: np.stack([v, -v]), [None], id="opposite phase"),
        pytest.param(lambda v: np.stack([v, 0.7 * v]), [None], id="panned"),
        pytest.param(stereo_music_like, [None], id="stereo mix"),
        pytest.param(lambda v: np.stack([v, 0 * v]), [None], id="one channel silent"),
        pytest.param(lambda v: np.stack([v, v, v]), [None], id="three channels"),
    ],
)
def test_tracks_of_channels(stage, voices, tmp_path, channels, tracks):
    voices = voices[: 20 * RATE]
    (speech,) = stage.process([item(tmp_path / "a.wav", channels(voices), RATE, [])])
    assert [track.channel for track in speech.tracks] == tracks
    # whatever the channels, no speech is lost to mixing
    (alone,) = stage.process([item(tmp_path / "mono.wav", voices[None], RATE, [])])
    assert seconds(speech) == pytest.approx(seconds(alone), rel=0.1)


def test_a_calls_speech_is_on_its_speakers_channel(stage, voices, tmp_path):
    (speech,) = stage.process([item(tmp_path / "a.wav", call(voices, 0.0), RATE, [])])
    for track in speech.tracks:
        other = [span for span in track.spans if int((span.start + span.end) / 2 // 5) % 2 != track.channel]
        assert track.spans and not other


CROSSTALK = [(db, delay, 0.0) for db in (-26, -20, -15, -12, -9, -7) for delay in (0.03, 0.005, 0.5)]
CROSSTALK += [(db, 0.03, -18.0) for db in (-26, -20, -15, -12, -9)]


@pytest.mark.parametrize(("crosstalk", "delay", "quieter"), CROSSTALK)
def test_crosstalk_is_nobodys_speech(stage, voices, tmp_path, crosstalk, delay, quieter):
    """Telephone (30 ms), two microphones in a room (5 ms), a late echo (0.5 s), and the second side 18 dB down."""
    voices = voices[: 40 * RATE]
    first = (np.arange(len(voices)) // (5 * RATE)) % 2 == 0
    sides = np.stack([np.where(first, voices, 0), 10 ** (quieter / 20) * np.where(first, 0, voices)])
    late = np.pad(sides, ((0, 0), (round(delay * RATE), 0)))[:, : len(voices)]
    noise = 10 ** (-65 / 20) * np.random.default_rng(0).standard_normal(sides.shape)
    samples = (sides + 10 ** (crosstalk / 20) * late[::-1] + noise).astype(np.float32)
    (speech,) = stage.process([item(tmp_path / "a.wav", samples, RATE, [])])
    (clean,) = stage.process([item(tmp_path / "b.wav", (sides + noise).astype(np.float32), RATE, [])])
    assert [track.channel for track in speech.tracks] == [0, 1]
    for track, alone in zip(speech.tracks, clean.tracks, strict=True):
        others = sum(_common(track.spans, span) for span in _turns_of(1 - track.channel, len(voices) / RATE, delay))
        assert others < 0.1 * sum(span.end - span.start for span in alone.spans)
        own = sum(_common(track.spans, span) for span in alone.spans)
        assert own > 0.95 * sum(span.end - span.start for span in alone.spans)


@pytest.mark.parametrize(("seconds", "echo_db", "delays", "least"), [(6, None, {0}, 1.0), (14, -15.0, {15, 16}, 0.8)])
def test_short_calls_have_a_delay_only_with_an_echo(voices, seconds, echo_db, delays, least):
    """Turns of 2 s, and an echo half a second late: 15.6 frames."""
    found: list[int] = []
    for start in range(0, 70 - seconds + 1, seconds):
        stretch = voices[start * RATE :][: seconds * RATE // 512 * 512]
        first = (np.arange(len(stretch)) // (2 * RATE)) % 2 == 0
        sides = np.stack([np.where(first, stretch, 0), np.where(first, 0, stretch)])
        late = np.pad(sides, ((0, 0), (RATE // 2, 0)))[:, : len(stretch)]
        echo = 0.0 if echo_db is None else 10 ** (echo_db / 20) * late[::-1]
        noise = 10 ** (-65 / 20) * np.random.default_rng(start).standard_normal(sides.shape)
        level = 10 * np.log10(np.square(sides + echo + noise).reshape(2, -1, 512).mean(axis=2))
        found += [echo_delay(level[0], level[1]), echo_delay(level[1], level[0])]
    assert len(found) >= 10 and sum(delay in delays for delay in found) >= least * len(found)


def _turns_of(channel: int, seconds: float, delay: float) -> list[Span]:
    """Where only the given channel speaks and its echo is heard: half a second after the other one, whose span has a
    margin, and after what is still on the way when it begins."""
    return [Span(start + 0.5 + delay, start + 5.0) for start in np.arange(5.0 * channel, seconds - 5, 10.0).tolist()]


def _common(spans: list[Span], other: Span) -> float:
    return sum(max(0.0, min(span.end, other.end) - max(span.start, other.start)) for span in spans)


@pytest.mark.parametrize(("wanted", "tracks"), [("yes", [0, 1]), ("no", [None])])
def test_the_source_can_say_what_the_channels_are(stage, voices, tmp_path, wanted, tracks):
    samples = np.stack([voices, voices]) if wanted == "yes" else call(voices, 0.0)
    of_call = item(tmp_path / "a.wav", samples[:, : 20 * RATE], RATE, [])
    of_call.recording.two_channel = wanted
    (speech,) = stage.process([of_call])
    assert [track.channel for track in speech.tracks] == tracks


def test_nobody_speaks(stage, tmp_path):
    silence = np.zeros((1, 70 * RATE), np.float32)
    with pytest.raises(RejectedRecording, match="no_speech"):
        stage.process([item(tmp_path / "a.wav", silence, RATE, [])])


def test_without_a_model_all_is_speech(voices, tmp_path):
    of_voices = item(tmp_path / "a.wav", voices[None], RATE, [])
    (speech,) = VadStage(VadConfig(backend=VadBackend.none)).process([of_voices])
    assert speech.tracks[0].spans == [Span(0.0, 70.0)]


def test_given_turns_are_the_speech_and_the_audio_is_not_read(stage, tmp_path):
    of_turns = item(tmp_path / "a.wav", np.zeros((2, 10 * RATE), np.float32), RATE, [])
    of_turns.recording.turns = [
        GivenTurn(0, "a", 1.0, 3.0, "Hello.", 0),
        GivenTurn(1, "b", 2.0, 4.0, "Hello.", 1),
        GivenTurn(2, "a", 2.5, 5.0, None, 0),
        GivenTurn(3, "a", 9.0, None, "Bye.", 0),
        GivenTurn(4, "a", 8.0, 30.0, "Outside.", 1),
    ]
    (tmp_path / "a.wav").unlink()
    (speech,) = stage.process([of_turns])
    assert [(track.channel, track.spans) for track in speech.tracks] == [
        (0, [Span(1.0, 5.0), Span(9.0, 10.0)]),
        (1, [Span(2.0, 4.0)]),
    ]


def test_results_do_not_depend_on_grouping(stage, voices, tmp_path):
    items = [item(tmp_path / f"{n}.wav", voices[None, n * RATE : (n + 9) * RATE], RATE, []) for n in (0, 20)]
    assert stage.process(items) == [alone(stage, one) for one in items]


def alone(stage: VadStage, one: Item) -> Speech:
    (speech,) = stage.process([one])
    return speech


def seconds(speech: Speech) -> float:
    return sum(span.end - span.start for track in speech.tracks for span in track.spans)
