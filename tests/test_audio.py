"""Reading every kind of file, and writing one."""

import av
import numpy as np
import pytest
import soundfile
import torch

from csm.audio import load_audio, load_channels, resample, save_wav


def tone(seconds: float, rate: int, hertz: float = 440.0) -> torch.Tensor:
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    return (0.5 * torch.sin(2 * torch.pi * hertz * time)).float()


def write_av(path, audio: torch.Tensor, rate: int, codec: str, container_format: str | None = None) -> None:
    """Encodes mono audio with FFmpeg."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        pcm = (audio * 32767).to(torch.int16).numpy()[None]
        for start in range(0, pcm.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm[:, start : start + 960]), "s16", "mono")
            frame.rate = rate
            for resampled in av.AudioResampler(stream.codec_context.format, "mono", rate).resample(frame):
                container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))


def loudest_hertz(audio: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(audio * torch.hann_window(len(audio))).abs()
    return float(spectrum.argmax()) * rate / len(audio)


def test_channels_are_averaged_or_chosen(tmp_path):
    left, right = tone(0.5, 24_000, 300), tone(0.5, 24_000, 700)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, torch.stack([left, right], dim=1).numpy(), 24_000, subtype="FLOAT")
    channels, rate = load_channels(path)
    assert rate == 24_000 and channels.dtype == torch.float32
    assert torch.equal(channels, torch.stack([left, right]))
    assert torch.equal(load_audio(path, 24_000, channel=1), right)
    torch.testing.assert_close(load_audio(path, 24_000), (left + right) / 2)
    with pytest.raises(ValueError, match=r"stereo\.wav: has no channel 2, only 0\.\.1"):
        load_audio(path, 24_000, channel=2)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_common_formats_come_back_at_the_wanted_rate(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(1.0, 44_100).numpy(), 44_100)
    audio = load_audio(path, 24_000)
    assert abs(len(audio) - 24_000) < 2400  # mp3 adds its encoder's delay
    assert loudest_hertz(audio, 24_000) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("name", "codec", "container_format", "rate"),
    [
        ("tone.m4a", "aac", None, 44_100),
        ("tone.opus", "libopus", "ogg", 48_000),
        ("tone.webm", "libopus", None, 48_000),
        ("tone.g722", "g722", "g722", 16_000),
    ],
)
def test_other_formats_are_read_through_ffmpeg(tmp_path, name, codec, container_format, rate):
    write_av(tmp_path / name, tone(1.0, rate), rate, codec, container_format)
    audio = load_audio(tmp_path / name, 24_000)
    assert abs(len(audio) - 24_000) < 2400
    assert loudest_hertz(audio, 24_000) == pytest.approx(440, abs=2)
    assert audio[4000:20_000].abs().max() == pytest.approx(0.5, abs=0.05)  # away from the ends, where aac rings


def test_resampling_keeps_the_signal_and_removes_what_cannot_be_represented():
    both = tone(1.0, 48_000, 1000) + tone(1.0, 48_000, 15_000)
    low = resample(both, 48_000, 24_000)
    assert len(low) == 24_000
    torch.testing.assert_close(low[1000:-1000], tone(1.0, 24_000, 1000)[1000:-1000], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a"])
@pytest.mark.parametrize("content", [b"", b"this is not audio at all" * 50], ids=["empty", "text"])
def test_files_that_are_not_audio_give_one_line_with_their_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: ") as caught:
        load_audio(path, 24_000)
    assert "\n" not in str(caught.value)


def test_missing_silent_and_damaged_files_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.wav: no such audio file"):
        load_audio(tmp_path / "gone.wav", 24_000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 24_000)
    with pytest.raises(ValueError, match=r"none\.wav: holds no audio samples"):
        load_audio(tmp_path / "none.wav", 24_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], np.float32), 24_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav: holds NaN"):
        load_audio(tmp_path / "nan.wav", 24_000)
    soundfile.write(tmp_path / "cut.flac", torch.randn(48_000).clamp(-1, 1).numpy(), 24_000)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.flac: "):
        load_audio(tmp_path / "cut.flac", 24_000)


def test_saved_wav_reads_back_and_clips_are_limited(tmp_path):
    audio = torch.tensor([0.0, 0.25, -0.5, 1.7, -2.0])
    save_wav(tmp_path / "out.wav", audio, 24_000)
    assert soundfile.info(tmp_path / "out.wav").subtype == "PCM_16"
    back, rate = load_channels(tmp_path / "out.wav")
    assert rate == 24_000
    torch.testing.assert_close(back[0], audio.clamp(-1, 1), atol=1 / 32767, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


@pytest.mark.parametrize("name", ["out.mp3", "out", "wav"])
def test_only_wav_names_are_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: only WAV files are written"):
        save_wav(tmp_path / name, tone(0.1, 24_000), 24_000)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    save_wav(tmp_path / "out.wav", tone(0.1, 24_000), 24_000)
    before = (tmp_path / "out.wav").read_bytes()
    with pytest.raises(ValueError, match=r"out\.wav: expected mono"):
        save_wav(tmp_path / "out.wav", torch.zeros(2, 10), 24_000)
    with pytest.raises(soundfile.LibsndfileError):
        save_wav(tmp_path / "out.wav", tone(0.1, 24_000), -1)
    assert (tmp_path / "out.wav").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]
