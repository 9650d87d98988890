"""Audio of recordings from every storage, against csm.audio and against what was written."""

import hashlib
import io
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from bad_files import speech
from made_recordings import noise, write_pyav

from csm.audio import load_channels, resample
from csm.decode import BLOCK
from data_prep.audio.decode import open_audio
from data_prep.audio.recording import IN_MEMORY_BYTES, RecordingAudio
from data_prep.inputs.probe import probe
from data_prep.reasons import RejectedRecording
from data_prep.records import Locator, Recording

RATE = 16000
REPOSITORY = Path(__file__).resolve().parents[2]


def audio_of(locator: Locator | Path, name: str | None = None, scratch: Path | None = None) -> RecordingAudio:
    if isinstance(locator, Path):
        locator, name = Locator(str(locator)), name or locator.name
    recording = Recording("r", "s", name, locator, "g", None, "en", "", "", 0.0, 0, 0, "")
    return RecordingAudio(recording, scratch)


@pytest.fixture(scope="module")
def formats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    talk = np.tile(speech("echo")[0], 2)  # 22.8 s: more than BLOCK samples
    stereo = np.stack([talk, np.roll(talk, 9000)], axis=1)
    soundfile.write(folder / "a.wav", stereo, 44100, subtype="PCM_24")
    soundfile.write(folder / "a.flac", stereo, 48000)
    soundfile.write(folder / "a.mp3", talk, RATE)
    soundfile.write(folder / "a.ogg", talk, 32000, subtype="VORBIS")
    soundfile.write(folder / "a8.wav", talk, 8000, subtype="PCM_U8")
    soundfile.write(folder / "law.wav", talk, 8000, subtype="ULAW")
    write_pyav(folder / "a.m4a", talk, 44100, "ipod", "aac")
    write_pyav(folder / "a.webm", talk, 48000, "webm", "libopus")
    write_pyav(folder / "a.g722", talk, RATE, "g722", "g722")
    write_pyav(folder / "uncounted.mp3", talk, RATE, "mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    return folder


NAMES = ("a.wav", "a.flac", "a.mp3", "a.ogg", "a8.wav", "law.wav", "a.m4a", "a.webm", "a.g722", "uncounted.mp3")


@pytest.mark.parametrize("name", NAMES)
def test_stretches_equal_those_cut_and_resampled_alone(formats, name):
    """As csm.audio reads and resamples: every format, each channel and their mean, to lower and higher rates."""
    audio = audio_of(formats / name)
    channels, rate = load_channels(formats / name)
    assert (audio.rate, audio.num_channels, audio.num_samples) == (rate, *channels.shape)
    assert audio.num_samples > BLOCK
    assert np.array_equal(np.concatenate(list(audio.blocks())), channels.numpy().T)
    for to_rate in (RATE, 24000, rate):
        for start, end in ((0.0, None), (0.51, 1.7), (1.0, 1.00001), (3.0, 999.0)):
            first, last = round(start * rate), None if end is None else round(end * rate)
            for channel in (None, *range(len(channels))):
                piece = channels[:, first:last]
                alone = resample(piece.mean(dim=0) if channel is None else piece[channel].clone(), rate, to_rate)
                assert np.array_equal(audio.track(channel, to_rate, start, end), alone.numpy())
    assert audio.track(0, RATE, 1e6).shape == audio.track(0, RATE, 2.0, 1.0).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_header_or_packets_tell_the_length(formats, name):
    found = probe(Locator(str(formats / name)), name)
    audio = audio_of(formats / name)
    assert found.reason is None and (found.sample_rate, found.channels) == (audio.rate, audio.num_channels)
    assert abs(found.seconds - audio.num_samples / audio.rate) < 0.1
    assert found.sha256 == hashlib.sha256((formats / name).read_bytes()).hexdigest()


def test_the_same_samples_from_file_url_tar_and_table(formats, tmp_path):
    names = ["a.flac", "a.g722", "a.m4a", "a.mp3"]
    contents = {name: (formats / name).read_bytes() for name in names}
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in names:
            tar.add(formats / name, f"deep/{name}")
    with tarfile.open(tmp_path / "all.tar") as tar:
        members = {Path(m.name).name: Locator(str(tmp_path / "all.tar"), m.offset_data, m.size) for m in tar}
    rows = [{"bytes": contents[name], "path": name} for name in names]
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "audio": rows}), tmp_path / "all.parquet", row_group_size=3)
    for row, name in enumerate(names):
        fsspec.filesystem("memory").pipe(f"/sources/{name}", contents[name])
        want = audio_of(formats / name).track(None, 24000, 0.3, 2.0)
        for locator in (
            Locator(f"memory://sources/{name}"),
            members[name],
            Locator(str(tmp_path / "all.parquet"), row=row, column="audio"),
        ):
            assert np.array_equal(audio_of(locator, name).track(None, 24000, 0.3, 2.0), want)


def test_channels_that_cancel_are_not_mixed(tmp_path, caplog):
    talk = speech("echo")[0][: 3 * RATE]
    other = noise(3.0, RATE, 1)

    def mixed(*channels: np.ndarray) -> tuple[np.ndarray, RecordingAudio]:
        path = tmp_path / f"{len(os.listdir(tmp_path))}.wav"
        soundfile.write(path, np.stack(channels, axis=1), RATE, subtype="FLOAT")
        audio = audio_of(path)
        return audio.track(None, RATE), audio

    with caplog.at_level(logging.WARNING):
        assert np.array_equal(mixed(talk, -talk)[0], talk)
        assert np.array_equal(mixed(0.5 * talk, -0.52 * talk)[0], np.float32(-0.52) * talk)
        assert [record.getMessage().split(": ")[0] for record in caplog.records] == ["0.wav", "1.wav"]
        caplog.clear()
        assert np.allclose(mixed(talk, talk)[0], talk)
        assert np.allclose(mixed(talk, other)[0], (talk + other) / 2)
        seven = [np.zeros_like(talk)] * 6
        assert np.allclose(mixed(talk, *seven)[0], talk / 7, atol=1e-7)
        assert not mixed(0 * talk, 0 * talk)[0].any()
        assert not caplog.records
    with pytest.raises(RejectedRecording, match=r"channel_missing: .*there is no channel 2, only 0\.\.1"):
        mixed(talk, other)[1].track(2, RATE)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_a_file_that_is_cut_off_is_not_taken_for_whole(formats, tmp_path, name):
    whole = (formats / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RejectedRecording, match=f"audio_truncated: {name}: the file is cut off after") as error:
        audio_of(tmp_path / name).track(None, RATE)
    assert error.value.reason == "audio_truncated"


def test_headers_written_by_a_pipe_are_not_taken_for_truncation(tmp_path):
    """Recorders that stream leave the length open: 0xFFFFFFFF in WAV, 0 in FLAC."""
    talk = speech("help")[0]
    soundfile.write(tmp_path / "a.wav", talk, RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    soundfile.write(tmp_path / "a.flac", talk, RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # 36 bits: number of samples (RFC 9639, section 8.2)
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    for name in ("a.wav", "a.flac"):
        assert audio_of(tmp_path / name).num_samples == len(talk)
        assert probe(Locator(str(tmp_path / name)), name).seconds == pytest.approx(len(talk) / RATE, abs=0.01)


def test_an_mp3_without_a_count_of_frames_is_read_to_its_end(tmp_path):
    """Its length cannot be told from its size where the bit rate varies or a picture lies in its tags."""
    talk = speech("echo")[0]
    write_pyav(tmp_path / "a.mp3", talk, RATE, "mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    picture = b"ID3\x03\0\0\0\x06\x1a\x20" + bytes((6 << 14) + (0x1A << 7) + 0x20)
    (tmp_path / "a.mp3").write_bytes(picture + (tmp_path / "a.mp3").read_bytes() + b"APETAGEX" + bytes(50_000))
    assert audio_of(tmp_path / "a.mp3").num_samples == pytest.approx(len(talk), abs=0.15 * RATE)
    assert probe(Locator(str(tmp_path / "a.mp3")), "a.mp3").seconds == pytest.approx(len(talk) / RATE, abs=0.15)


def test_what_cannot_be_used_says_why(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), RATE)
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    soundfile.write(tmp_path / "damaged.flac", noise(8.0, RATE, 3), RATE)
    data = bytearray((tmp_path / "damaged.flac").read_bytes())
    data[len(data) // 2 :][:2000] = bytes(2000)
    data[len(data) // 3 : len(data) // 3 + 3000] = bytes(3000)
    (tmp_path / "damaged.flac").write_bytes(data)
    expected = {
        "gone.wav": "audio_missing",
        "none.wav": "audio_empty",
        "video.mp4": "audio_corrupt",
        "damaged.flac": "audio_corrupt",
    }
    for name, reason in expected.items():
        with pytest.raises(RejectedRecording) as error:
            audio_of(tmp_path / name).track(None, RATE)
        assert error.value.reason == reason and name in error.value.message


class Failing(io.BytesIO):
    """Storage that fails after some bytes."""

    def read(self, size: int = -1) -> bytes:
        if self.tell() > 20_000:
            raise TimeoutError("the server does not answer")
        return super().read(size)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a", "a.g722", "uncounted.mp3"])
def test_failing_storage_is_no_property_of_the_recording(formats, name):
    """It is raised unchanged, to be retried, from within both decoders."""
    with pytest.raises(TimeoutError, match="the server does not answer"):
        for _ in open_audio(Failing((formats / name).read_bytes()), name).blocks():
            pass


def test_an_hour_needs_little_memory_and_leaves_nothing(tmp_path):
    """Two channels of an hour at 8 kHz: 230 MB of float32, decoded, mixed, resampled and hashed."""
    block = np.zeros((1 << 20, 2), np.int16)
    block[::1000] = 1000
    remaining = 3600 * 8000
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", 8000, 2, "PCM_16", compression_level=0) as file:
        while remaining:
            file.write(block[:remaining])
            remaining -= min(len(block), remaining)
    child = f"""
import hashlib, os, resource, sys
sys.path[:0] = [{str(REPOSITORY / "tests" / "data_prep")!r}, {str(REPOSITORY)!r}]
from pathlib import Path
from test_recording_audio import audio_of
scratch = Path({str(tmp_path)!r}) / "scratch"
scratch.mkdir()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
audio = audio_of(Path({str(tmp_path)!r}) / "hour.flac", scratch=scratch)
assert audio.num_samples == 3600 * 8000
digest = hashlib.sha256()
for block in audio.blocks():
    digest.update(block)
piece = audio.track(None, 24000, 1800.0, 1830.0)
assert len(piece) == 30 * 24000 and piece.any()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, len(os.listdir(scratch)))
os._exit(9)  # as if killed
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    grown, files = done.stdout.split()
    assert float(grown) < 2 * IN_MEMORY_BYTES / 2**20 and files == "0"
    assert os.listdir(tmp_path / "scratch") == []


def test_long_and_short_recordings_are_read_alike(tmp_path, monkeypatch):
    """A file instead of memory changes no sample; closing gives its space back, and reading again decodes again."""
    soundfile.write(tmp_path / "a.wav", noise(20.0, RATE, 5), RATE)
    in_memory = audio_of(tmp_path / "a.wav").track(None, 24000, 1.0, 19.0)
    monkeypatch.setattr("data_prep.audio.recording.IN_MEMORY_BYTES", 1 << 16)
    audio = audio_of(tmp_path / "a.wav")
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert np.array_equal(audio.track(None, 24000, 1.0, 19.0), in_memory)
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1
        audio.close()
        assert len(os.listdir("/proc/self/fd")) == descriptors
