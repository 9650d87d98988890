"""Containers whose clock does not begin at 0 (parts of streams, cut recordings): times count from their beginning."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from csm.audio import load_audio
from data_prep.audio.recording import RecordingAudio
from data_prep.inputs.probe import probe
from data_prep.records import Locator, Made, Recording

RATE = 16_000


def silence_and_tone(path: Path, container_format: str, begin: float, streams: int) -> Path:
    """A second of silence, then a second of a tone, in each stream; the first time stamp is `begin`."""
    samples = (8000 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.int16)
    samples[:RATE] = 0
    with av.open(str(path), "w", format=container_format) as out:
        for stream in [out.add_stream("aac", rate=RATE, layout="mono") for _ in range(streams)]:
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, round(begin * RATE), Fraction(1, RATE)
            pieces = av.AudioResampler(stream.format, stream.layout, RATE, stream.frame_size)
            for piece in [*pieces.resample(frame), *pieces.resample(None)]:
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("begin", [0.0, 5.0, 5000.0])
@pytest.mark.parametrize("container_format", ["matroska", "mov", "mpegts"])
def test_each_stream_begins_with_the_recording(tmp_path, container_format, begin):
    path = silence_and_tone(tmp_path / "call.mkv", container_format, begin, streams=2)
    locator = Locator(str(path), made=Made([str(path)], streams=True))
    assert probe(locator, path.name).seconds == pytest.approx(2.0, abs=0.15)
    audio = RecordingAudio(Recording("r", "s", path.name, locator, "g", None, "en", ""))
    for channel in (0, 1):
        assert _tone(audio.track(channel, RATE)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("begin", [0.0, 5.0])
def test_a_matroska_file_that_begins_late_is_not_called_cut_off(tmp_path, begin):
    path = silence_and_tone(tmp_path / "part.mka", "matroska", begin, streams=1)
    found = probe(Locator(str(path)), path.name)
    assert found.reason is None and found.seconds == pytest.approx(2.0, abs=0.1)
    samples = load_audio(str(path), RATE).numpy()
    assert len(samples) / RATE == pytest.approx(found.seconds, abs=0.05)
    assert _tone(samples) == pytest.approx(1.0, abs=0.1)


def _tone(samples: np.ndarray) -> float:
    """Seconds before the tone begins."""
    return float(np.flatnonzero(np.abs(samples) > 0.05)[0]) / RATE
