"""Measures of a turn's audio, on signals for which they are known."""

import hashlib
import math

import numpy as np
import pytest
import soundfile
import soxr
from heard import demo_turns, draft, item, recording
from scipy.signal import butter, sosfiltfilt

from data_prep.audio.recording import RecordingAudio
from data_prep.config import ScoreConfig
from data_prep.reasons import Reason
from data_prep.records import Locator, Rejection
from data_prep.stages.score import ScoreStage, bandwidth, clipped, loudness, pcm_sha256


def tone(frequency: float, seconds: float, rate: int, level: float = 1.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.25, 0.46, 3.0])
def test_loudness_of_the_standards_reference_tone(rate, seconds):
    """ITU-R BS.1770-4: a 997 Hz sine at full scale in one channel reads -3.01 LKFS; EBU Tech 3341 allows 0.1."""
    assert loudness(tone(997, seconds, rate), rate) == pytest.approx(-3.01, abs=0.1)
    assert loudness(tone(997, seconds, rate, level=0.1), rate) == pytest.approx(-23.01, abs=0.1)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_loudness_of_every_length_shorter_than_a_block(rate):
    """For lengths from 0.2 to 0.4 s whose seconds times the rate are rounded up, and every 499th of the others."""
    lengths = np.arange(round(0.2 * rate), round(0.4 * rate) + 2)
    rounded_up = lengths / rate * rate > lengths
    assert rounded_up.any()
    sound = tone(997, 0.5, rate, level=0.1)
    for n in np.union1d(lengths[rounded_up], lengths[::499]).tolist():
        assert loudness(sound[:n], rate) == pytest.approx(-23.01, abs=0.1), n


def test_loudness_ignores_pauses():
    """The gate of EBU R 128: silence around and between does not count, as long as there are whole blocks of sound."""
    rate = 16_000
    sound = tone(997, 4.0, rate, level=0.1)
    pause = np.zeros(8 * rate, dtype=np.float32)
    with_pauses = np.concatenate([pause, sound, pause, sound, pause])
    assert loudness(with_pauses, rate) == pytest.approx(loudness(sound, rate), abs=0.4)
    assert 20 * math.log10(np.sqrt(np.mean(with_pauses**2)) / np.sqrt(np.mean(sound**2))) < -5
    assert loudness(pause, rate) is None


def test_clipped_share():
    """Of a sine driven to twice full scale, the share beyond level a is 1 - 2/pi asin(a/2)."""
    driven = np.clip(2 * tone(997, 3.0, 16_000), -1, 1)
    assert clipped(driven) == pytest.approx(1 - 2 / math.pi * math.asin(0.98 / 2), abs=1e-3)
    assert clipped(0.97 * driven) == 0.0
    encoded = np.round(driven * 32124 / 32768 * 32768) / 32768  # the largest value of mu-law, as 16-bit PCM
    assert clipped(encoded.astype(np.float32)) > 0.6
    assert clipped(np.zeros(0, np.float32)) is None


@pytest.mark.parametrize("edge", [1000, 3400, 7000])
def test_bandwidth_of_band_limited_noise(edge):
    rate = 24_000
    noise = np.random.default_rng(0).standard_normal(2 * rate)
    limited = sosfiltfilt(butter(20, edge, fs=rate, output="sos"), noise).astype(np.float32)
    assert bandwidth(0.1 * limited, rate) == pytest.approx(edge, rel=0.2)  # 60 dB down is a little beyond the edge
    assert bandwidth((0.1 * noise).astype(np.float32), rate) == pytest.approx(12_000, rel=0.01)


def test_bandwidth_of_a_call_that_was_resampled():
    """Speech at 8 kHz brought to 24 kHz reads about 4 kHz, even as 16 bit with a click; the original reads 8."""
    wide = demo_turns(2.0)
    assert len(wide) > 20
    narrow = [soxr.resample(soxr.resample(audio, 16_000, 8000), 8000, 24_000) for audio in wide.values()]
    narrow = [(np.round(audio * 32767) / 32768).astype(np.float32) for audio in narrow]
    for audio in narrow:
        audio[len(audio) // 2] = 1.0
        assert 3000 < bandwidth(audio, 24_000) < 4100
    assert np.median([bandwidth(audio, 16_000) for audio in wide.values()]) > 7000
    assert bandwidth(np.zeros(24_000, np.float32), 24_000) is None


def test_stage_scores_each_turn_from_its_own_channel(tmp_path):
    rate = 8000
    channels = np.stack([tone(997, 6.0, rate, level=0.1), tone(997, 6.0, rate, level=0.01)])
    channels[0, rate : 2 * rate] = 1.0
    turns = [
        draft(0, 0.0, 1.0, channel=0),
        draft(1, 1.0, 2.0, channel=0),
        draft(2, 1.0, 3.0, channel=1),
        draft(3, 2.0, 3.0, channel=0, rejection=Rejection(reason=Reason.too_short, message="")),
        draft(4, 3.0, 6.0, channel=1),
    ]
    heard = item(tmp_path / "call.wav", channels, rate, turns)
    stage = ScoreStage(ScoreConfig())
    (scores,) = stage.process([heard])
    assert [score.number for score in scores.turns] == [0, 1, 2, 4]
    assert [score.clipped for score in scores.turns] == [0.0, 1.0, 0.0, 0.0]
    assert scores.turns[0].lufs == pytest.approx(-23.0, abs=0.1)
    assert scores.turns[2].lufs == pytest.approx(-43.0, abs=0.1)
    assert [len(score.fingerprint) for score in scores.turns] == [0, 0, 5, 13]
    assert scores.turns[0].ovrl is None
    assert stage.process([heard, heard]) == [scores, scores]
    (unprinted,) = ScoreStage(ScoreConfig(fingerprint=False)).process([heard])
    assert not any(score.fingerprint for score in unprinted.turns)


def test_pcm_hash_is_of_the_samples_not_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    rate = 8000
    samples = rng.integers(-(2**15), 2**15, size=(20 * rate, 2)).astype(np.int16)  # more than a block of decoding

    def hashed(name: str) -> str:
        soundfile.write(tmp_path / name, samples, rate)
        return pcm_sha256(RecordingAudio(recording(20.0, rate, 2, locator=Locator(str(tmp_path / name)))))

    expected = hashlib.sha256(b"8000 2\n" + (samples.astype("<f4") / 32768).tobytes()).hexdigest()
    assert hashed("a.wav") == hashed("a.flac") == expected
    samples[-1, 1] ^= 1
    assert hashed("b.wav") != expected
