"""Files whose header does not tell what follows: joined ones, other rates, pauses in time stamps, counts of zero.

`csm.audio` and data preparation read the same samples of each, at the times at which they were recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

import data_prep
from csm.audio import load_audio, load_channels
from csm.audio_bytes import Fault, UnreadableAudio
from csm.decode import open_audio
from data_prep.audio.made import open_made
from data_prep.audio.recording import RecordingAudio
from data_prep.inputs.probe import probe
from data_prep.records import Locator, Made, Recording

DEMO = Path(data_prep.__file__).parent / "demo"
RATE = 16_000


def read(path: Path) -> tuple[float, Callable[[float, float], np.ndarray]]:
    """Length in seconds by the plan, and a function that reads a stretch at 16 kHz; both readers must agree."""
    found = probe(Locator(str(path)), path.name)
    assert found.reason is None, found.message
    recording = Recording("r", "s", path.name, Locator(str(path)), "g", None, "en", "", "", 0.0, 0, 0, "")
    audio = RecordingAudio(recording)
    own = load_audio(path, audio.rate).numpy()
    assert np.array_equal(own, audio.track(None, audio.rate))
    assert abs(found.seconds - audio.num_samples / audio.rate) < 0.1
    return found.seconds, lambda start, end: audio.track(None, RATE, start, end)


def hertz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples))


def tone(frequency: float, seconds: float, rate: int) -> np.ndarray:
    return (9000 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def demo(name: str) -> np.ndarray:
    samples, rate = soundfile.read(DEMO / f"{name}.flac", dtype="float32")
    assert rate == RATE
    return samples


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("x.mp3", {}),
        ("x.ogg", {"subtype": "VORBIS"}),
        ("x.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("x.flac", {}),
    ],
)
def test_joined_files_are_read_to_their_end(tmp_path, name, how):
    parts = [demo("echo"), demo("welcome")]
    for number, part in enumerate(parts):
        soundfile.write(tmp_path / f"{number}{name}", part, RATE, **how)
    data = [(tmp_path / f"{number}{name}").read_bytes() for number in range(2)]
    (tmp_path / name).write_bytes(b"".join(data))
    seconds, stretch = read(tmp_path / name)
    assert seconds == pytest.approx(sum(len(part) for part in parts) / RATE, abs=0.2)
    second = stretch(len(parts[0]) / RATE + 1.0, len(parts[0]) / RATE + 3.0)
    want = parts[1][round(0.7 * RATE) : round(3.3 * RATE)]  # encoders pad each part
    peak = max(np.dot(second, want[at : at + len(second)]) for at in range(0, len(want) - len(second), 2))
    assert peak / (np.linalg.norm(second) * np.linalg.norm(parts[1][RATE : 3 * RATE])) > 0.8
    # one file alone, also with tags behind it, does not go on
    (tmp_path / f"one{name}").write_bytes(data[0] + (b"TAG" + bytes(125)) * (name == "x.mp3"))
    assert read(tmp_path / f"one{name}")[0] == pytest.approx(len(parts[0]) / RATE, abs=0.1)


def test_joined_wav_files_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", demo("help"), RATE)
    (tmp_path / "two.wav").write_bytes((tmp_path / "a.wav").read_bytes() * 2)
    found = probe(Locator(str(tmp_path / "two.wav")), "two.wav")
    assert found.reason == "audio_corrupt" and "several WAV files in one" in found.message
    with pytest.raises(ValueError, match=r"two\.wav: several WAV files in one"):
        load_audio(tmp_path / "two.wav", RATE)


def mp3(path: Path, rate: int) -> bytes:
    options = {"write_xing": "0", "id3v2_version": "0"}
    with av.open(str(path), "w", format="mp3", options=options) as out:
        stream = out.add_stream("libmp3lame", rate=rate, layout="mono")
        convert = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size)
        frame = av.AudioFrame.from_ndarray(tone(440, 3.0, rate)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("rates", [(22050, 44100), (44100, 22050), (48000, 16000)])
def test_another_sample_rate_within_a_file_changes_neither_pitch_nor_times(tmp_path, rates):
    (tmp_path / "ad.mp3").write_bytes(b"".join(mp3(tmp_path / f"{rate}.mp3", rate) for rate in rates))
    seconds, stretch = read(tmp_path / "ad.mp3")
    assert seconds == pytest.approx(6.0, abs=0.15)
    assert hertz(stretch(1, 2)) == pytest.approx(440, abs=1) and hertz(stretch(4, 5)) == pytest.approx(440, abs=1)


def write_with_pauses(path: Path, parts: list[tuple[float, float, float]], video: bool = False, **options: str) -> None:
    """Tones (hertz, seconds, seconds of pause in the time stamps after them) as Opus in WebM."""
    rate, at = 48_000, 3 * 48_000 if video else 0
    with av.open(str(path), "w", format="webm", options=options) as out:
        stream = out.add_stream("libopus", rate=rate, layout="mono")
        if video:
            pictures = out.add_stream("libvpx", rate=10)
            pictures.width = pictures.height = 16
            for number in range(60):
                picture = av.VideoFrame(16, 16, "yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, 10)
                out.mux(pictures.encode(picture))
            out.mux(pictures.encode(None))
        for frequency, seconds, pause in parts:
            samples = tone(frequency, seconds, rate)
            for first in range(0, len(samples), 960):
                frame = av.AudioFrame.from_ndarray(
                    samples[None, first : first + 960].copy(), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
                at += 960
                out.mux(stream.encode(frame))
            at += round(pause * rate)
        out.mux(stream.encode(None))


@pytest.mark.parametrize("options", [{"live": "1"}, {}], ids=["live", "whole"])
def test_pauses_in_time_stamps_are_silence(tmp_path, options):
    """A muted stretch of two seconds, and one of 0.3 s."""
    write_with_pauses(tmp_path / "a.webm", [(400, 3, 2), (1000, 1, 0.3), (2500, 3, 0)], **options)
    seconds, stretch = read(tmp_path / "a.webm")
    assert seconds == pytest.approx(9.3, abs=0.05)
    for start, end, frequency in ((1.0, 2.0, 400), (5.1, 5.9, 1000), (6.5, 9.0, 2500)):
        assert hertz(stretch(start, end)) == pytest.approx(frequency, abs=3)
    assert np.abs(stretch(3.2, 4.8)).max() < 1e-3 and np.abs(stretch(6.1, 6.2)).max() < 1e-3


def test_audio_that_begins_after_the_video_begins_there(tmp_path):
    write_with_pauses(tmp_path / "a.webm", [(1000, 2, 0)], video=True)
    seconds, stretch = read(tmp_path / "a.webm")
    assert seconds == pytest.approx(5.0, abs=0.1)
    assert np.abs(stretch(0.0, 2.8)).max() < 1e-3 and hertz(stretch(3.2, 4.8)) == pytest.approx(1000, abs=1)


def test_a_length_of_zero_in_the_header_is_not_believed(tmp_path):
    """As a recorder leaves it that was killed."""
    talk = demo("echo")
    soundfile.write(tmp_path / "rec.wav", talk, RATE)
    data = bytearray((tmp_path / "rec.wav").read_bytes())
    data[4:8] = data[40:44] = bytes(4)
    (tmp_path / "rec.wav").write_bytes(data)
    seconds, stretch = read(tmp_path / "rec.wav")
    assert seconds == pytest.approx(len(talk) / RATE, abs=0.01)
    assert np.allclose(stretch(1.0, 2.0), talk[RATE : 2 * RATE], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("call.wav", {"subtype": "GSM610"}),
        ("call.w64", {"format": "W64", "subtype": "GSM610"}),
        ("call.aiff", {"subtype": "GSM610"}),
        ("call.au", {"subtype": "G721_32"}),
        ("a.au", {"subtype": "G723_24"}),
        ("b.wav", {"subtype": "NMS_ADPCM_32"}),
    ],
)
def test_encodings_without_a_seek_are_read(tmp_path, name, how):
    talk = soxr.resample(demo("welcome"), RATE, 8000)
    soundfile.write(tmp_path / name, talk, 8000, **how)
    seconds, stretch = read(tmp_path / name)
    assert seconds == pytest.approx(len(talk) / 8000, abs=0.1)
    assert np.abs(stretch(0.5, 4.0)).max() > 0.1


def test_headerless_telephone_audio(tmp_path):
    talk = soxr.resample(demo("welcome"), RATE, 8000)
    for suffix, subtype in ((".ul", "ULAW"), (".al", "ALAW")):
        path = tmp_path / f"call{suffix}"
        soundfile.write(path, talk, 8000, format="RAW", subtype=subtype)
        seconds, stretch = read(path)
        assert seconds == pytest.approx(len(talk) / 8000)
        want = soxr.resample(talk[8000:16000], 8000, RATE, quality="HQ")
        assert np.abs(stretch(1.0, 2.0) - want).max() < 0.02
    soundfile.write(tmp_path / "pcm.raw", talk, 8000, format="RAW", subtype="PCM_16")
    found = probe(Locator(str(tmp_path / "pcm.raw")), "pcm.raw")
    assert found.reason == "audio_corrupt" and "headerless" in found.message


def test_channels_that_cancel_and_files_that_are_cut_off(tmp_path):
    talk = demo("echo")
    soundfile.write(tmp_path / "phase.wav", np.stack([talk, -talk], axis=1), RATE)
    assert np.allclose(load_audio(tmp_path / "phase.wav", RATE), talk, atol=1e-4)
    assert load_channels(tmp_path / "phase.wav")[0].shape[0] == 2
    read(tmp_path / "phase.wav")
    soundfile.write(tmp_path / "cut.mp3", talk, RATE)
    whole = (tmp_path / "cut.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp3: the file is cut off after .*; replace or remove the file"):
        load_audio(tmp_path / "cut.mp3", RATE)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mp3", "x.ogg", "x.opus", "x.gsm.wav", "x.al"])
def test_reading_from_a_sample_on_is_the_same_as_reading_all(tmp_path, name):
    how = {"x.opus": {"format": "OGG", "subtype": "OPUS"}, "x.gsm.wav": {"subtype": "GSM610"}}.get(name, {})
    if name == "x.al":  # without a header, read by FFmpeg
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(128_000))
    else:
        soundfile.write(tmp_path / name, np.tile(demo("echo"), 2)[: 16 * RATE], RATE, **how)

    def samples(start: int, stop: int | None = None) -> np.ndarray:
        with (tmp_path / name).open("rb") as file:
            return np.concatenate([np.zeros((0, 1), np.float32), *open_audio(file, name).blocks(start, stop)])

    whole = samples(0)
    for start in (1, 65_536, 65_537, 100_001, len(whole) - 1, len(whole) + 5):
        np.testing.assert_array_equal(samples(start), whole[start:])
        for stop in (0, start - 1, start, start + 1, start + 70_000, len(whole), len(whole) + 9):
            np.testing.assert_array_equal(samples(start, stop), whole[start : max(start, stop)])


def test_of_a_stretch_nothing_before_it_is_kept_and_nothing_behind_it_is_read(tmp_path):
    rate = 8000
    sound = np.random.default_rng(0).standard_normal(60 * rate).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "long.wav", sound, rate, subtype="FLOAT")
    cut = (tmp_path / "long.wav").read_bytes()[: 44 + 30 * rate * 4]
    (tmp_path / "long.wav").write_bytes(cut)  # damaged behind the stretch
    with open_made(Made([str(tmp_path / "long.wav")], start=20.0, end=22.5)) as file:
        stretch, _ = soundfile.read(file, dtype="float32")
    assert len(stretch) == 2.5 * rate and abs(stretch).max() > 0.1
    (place,) = [
        at for at in range(20 * rate - 100, 20 * rate + 100) if np.array_equal(sound[at : at + 100], stretch[:100])
    ]
    assert place == 20 * rate


@pytest.mark.parametrize("seconds", [2.0, 2.048, 5.3])
def test_no_sample_is_lost_where_flac_files_join(tmp_path, seconds):
    """At their own rates and lengths; the length of the third one is not in its header."""
    parts = [0.5 * tone(frequency, seconds, 8000) / 32768 for frequency in (300, 500, 700)]
    for number, part in enumerate(parts):
        soundfile.write(tmp_path / f"{number}.flac", part, 8000)
    data = [(tmp_path / f"{number}.flac").read_bytes() for number in range(3)]
    unknown = bytearray(data[2])
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    for third in (data[2], bytes(unknown)):
        (tmp_path / "x.flac").write_bytes(data[0] + data[1] + third)
        np.testing.assert_allclose(load_audio(tmp_path / "x.flac", 8000), np.concatenate(parts), atol=1e-4)
        assert probe(Locator(str(tmp_path / "x.flac")), "x.flac").seconds == pytest.approx(3 * seconds)


def test_joined_flac_files_of_other_rates_are_resampled_and_of_other_channels_refused(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(400, 2.0, RATE), RATE)
    soundfile.write(tmp_path / "b.flac", tone(600, 2.0, 44100), 44100)
    (tmp_path / "x.flac").write_bytes((tmp_path / "a.flac").read_bytes() + (tmp_path / "b.flac").read_bytes())
    samples = load_audio(tmp_path / "x.flac", RATE).numpy()
    assert len(samples) == 4 * RATE and hertz(samples[: 2 * RATE]) == pytest.approx(400, abs=1)
    assert hertz(samples[2 * RATE :]) == pytest.approx(600, abs=1)
    soundfile.write(tmp_path / "b.flac", np.stack([tone(600, 2.0, RATE)] * 2, axis=1), RATE)
    (tmp_path / "x.flac").write_bytes((tmp_path / "a.flac").read_bytes() + (tmp_path / "b.flac").read_bytes())
    assert "not all of which have 1 channels" in probe(Locator(str(tmp_path / "x.flac")), "x.flac").message


def test_eight_channels_are_read(tmp_path):
    levels = 0.1 * np.arange(1, 9, dtype=np.float32)
    with av.open(str(tmp_path / "x.mkv"), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=8000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.tile(levels, 8000)[None], "flt", "7.1")
        frame.sample_rate = 8000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    channels, rate = load_channels(tmp_path / "x.mkv")
    assert rate == 8000
    np.testing.assert_array_equal(channels.numpy(), np.tile(levels[:, None], 8000))


@pytest.mark.parametrize("size", [20, 42, 60, 100, 20_000])
def test_a_joined_flac_file_that_is_cut_off_is_an_error_behind_the_whole_ones(tmp_path, size):
    """With times of the whole file. 20 and 60 bytes of the last one are no whole header; 42 and 100 have no frame."""
    sound = 0.1 * np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", sound, RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(data + data + data[:size])
    with (tmp_path / "x.flac").open("rb") as file, pytest.raises(UnreadableAudio) as raised:
        list(open_audio(file, "x.flac").blocks())
    assert raised.value.fault is Fault.audio_truncated
    assert re.match(rf"x\.flac: .* {2 * 40_000 / RATE:.2f} s", str(raised.value))
    with (tmp_path / "x.flac").open("rb") as file:
        reader = open_audio(file, "x.flac")
        assert sum(map(len, reader.blocks(0, 80_000))) == 80_000
    (tmp_path / "one.flac").write_bytes(data[:size])
    with (tmp_path / "one.flac").open("rb") as file, pytest.raises(UnreadableAudio):
        list(open_audio(file, "one.flac").blocks())
