"""The report plays what data preparation read of a recording, and each speaker's file is heard in the conversation."""

import errno
import io
import tracemalloc
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from layouts import Source, text

from csm.audio import load_audio
from csm.data.dataset import ShardedDataset
from data_prep.audio.made import open_made
from data_prep.audio.recording import RecordingAudio
from data_prep.inputs.probe import probe
from data_prep.records import Made
from data_prep.report.samples import Heard, listen
from tests.data.made_datasets import made_sample, write_dataset

RATE = 8000


def tone(seconds: float, frequency: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def loudest(samples: np.ndarray, rate: int) -> tuple[float, float]:
    """Frequency and amplitude of the strongest tone."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    place = int(np.argmax(spectrum))
    return place * rate / len(samples), float(spectrum[place] * 4 / len(samples))


def check_is_one_second_of_600_hertz(heard: Heard) -> None:
    assert heard.audio is not None and heard.seconds == pytest.approx(1.0, abs=0.01)
    samples, rate = soundfile.read(io.BytesIO(heard.audio))
    frequency, amplitude = loudest(samples[: round(0.9 * rate)], rate)
    assert frequency == pytest.approx(600, abs=5) and amplitude == pytest.approx(0.3, rel=0.15)


def opposite(folder: Path) -> str:
    track = tone(4.0, 600)
    soundfile.write(folder / "opposite.wav", np.stack([track, -track], axis=1), RATE, "FLOAT")
    return "opposite.wav"


def joined(folder: Path) -> str:
    for n, frequency in enumerate((300, 600)):
        soundfile.write(folder / f"{n}.ogg", tone(2.0, frequency), RATE, "VORBIS")
    (folder / "joined.ogg").write_bytes((folder / "0.ogg").read_bytes() + (folder / "1.ogg").read_bytes())
    return "joined.ogg"


def gsm(folder: Path) -> str:
    soundfile.write(folder / "gsm.wav", tone(4.0, 600), RATE, "GSM610")
    return "gsm.wav"


def of_one_turn(folder: Path, audio: str, channel: int | None) -> ShardedDataset:
    """A dataset of the recording `audio` in `folder`, from 2.5 to 3.5 s."""
    made = folder / "made"
    made.mkdir()
    turn = replace(made_sample(0).turns[0], start=2.5, end=3.5, channel=channel)
    sample = replace(made_sample(0), audio=audio, turns=[turn], codes=made_sample(0).codes[:, : turn.num_frames])
    write_dataset(made, [sample])
    described = (made / "dataset.json").read_text().replace(f'"{made}"', f'"{folder}"')
    (made / "dataset.json").write_text(described)
    return ShardedDataset(made)


@pytest.mark.parametrize("write", [opposite, joined, gsm])
def test_the_report_plays_what_is_trained(tmp_path, write):
    """The second half of recordings that a plain decoder reads as silence, or not at all."""
    (heard,), origin = listen(of_one_turn(tmp_path, write(tmp_path), None), np.array([0]))
    assert "cut from the original recordings" in origin
    check_is_one_second_of_600_hertz(heard)


@pytest.mark.parametrize(("channels", "channel"), [(1, None), (1, 0), (2, 1)])
def test_of_recordings_that_can_be_entered_only_the_turn_is_decoded(tmp_path, monkeypatch, channels, channel):
    tracks = [tone(4.0, 300), tone(4.0, 600)][-channels:]
    soundfile.write(tmp_path / "call.flac", np.stack(tracks, axis=1), RATE)
    monkeypatch.setattr(RecordingAudio, "track", lambda *_: pytest.fail("all of it is decoded"))
    (heard,), _ = listen(of_one_turn(tmp_path, "call.flac", channel), np.array([0]))
    check_is_one_second_of_600_hertz(heard)


def test_a_full_disk_is_not_taken_for_missing_audio(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordingAudio, "track", full)
    (heard,), origin = listen(of_one_turn(tmp_path, opposite(tmp_path), None), np.array([0]))
    assert heard.audio is None and "no space for all decoded audio in" in origin and "not on this machine" not in origin


def test_a_speaker_whose_channels_cancel_each_other_is_heard(tmp_path, caplog):
    """One file for each speaker, one of them with a microphone wired the wrong way round."""
    first, second = tone(1.0, 300), tone(1.0, 600)
    soundfile.write(tmp_path / "call_spk1.wav", np.stack([first, -first], axis=1), RATE, "FLOAT")
    soundfile.write(tmp_path / "call_spk2.wav", np.stack([second, 0.5 * second], axis=1), RATE, "FLOAT")
    text(tmp_path / "call_spk1.txt", "Hi."), text(tmp_path / "call_spk2.txt", "Hello.")
    (entry,) = Source(tmp_path).recordings.values()
    assert probe(entry.locator, entry.audio).channels == 2
    for channel, expected in enumerate((first, 0.75 * second)):
        heard = RecordingAudio(entry).track(channel, RATE)
        np.testing.assert_allclose(heard, expected, atol=1e-6)
        alone = load_audio(tmp_path / f"call_spk{channel + 1}.wav", RATE).numpy()
        np.testing.assert_array_equal(heard, alone)
    assert "call_spk1.wav: its channels cancel each other; channel 0 is used alone" in caplog.text


def test_streams_of_a_video_are_mixed_as_files_are(tmp_path):
    """Of two stereo streams one is in opposite phase, and one has a silent channel."""
    samples = [np.stack([a, b]) for track in [tone(1.0, 600)] for a, b in ((track, -track), (track, 0 * track))]
    with av.open(str(tmp_path / "call.mkv"), "w") as container:
        streams = [container.add_stream("pcm_f32le", rate=RATE, layout="stereo") for _ in samples]
        for stream, channels in zip(streams, samples, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.T.reshape(1, -1)), "flt", "stereo")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (entry,) = Source(tmp_path).recordings.values()
    assert probe(entry.locator, entry.audio).channels == 2
    for channel, scale in enumerate((1.0, 0.5)):
        heard = RecordingAudio(entry).track(channel, RATE)
        np.testing.assert_allclose(heard, scale * tone(1.0, 600), atol=1e-6)


def test_a_videos_streams_are_mixed_while_they_are_decoded(tmp_path):
    """At no time are the channels of a stream in memory beside the mix; each is 60 s of eight channels."""
    rate, seconds = 16_000, 60
    with av.open(str(tmp_path / "call.mkv"), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=rate, layout="7.1") for _ in range(2)]
        for second in range(seconds):
            for stream in streams:
                frame = av.AudioFrame.from_ndarray(np.full((1, 8 * rate), 8192, np.int16), "s16", "7.1")
                frame.sample_rate, frame.pts = rate, second * rate
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    tracemalloc.start()
    try:
        with open_made(Made([str(tmp_path / "call.mkv")], streams=True)) as file:
            peak = tracemalloc.get_traced_memory()[1]
            samples, _ = soundfile.read(file, dtype="float32")
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(samples, np.full((seconds * rate, 2), 0.25, np.float32))
    assert peak < 8 * seconds * rate * 4  # one stream's channels
