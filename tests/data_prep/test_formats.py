"""Every common audio format goes from a file through `prepare` into the dataset."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from made_recordings import noise, turn, write_manifest

from csm.data.dataset import ShardedDataset
from data_prep.audio.recording import RecordingAudio
from data_prep.demo import MANIFEST
from data_prep.inputs.plan import make_plan
from data_prep.prepare import prepare

# name -> (rate, channels, how soundfile writes it) or (rate, channels, PyAV's container, codec)
SOUNDFILE = {
    "phone.wav": (8000, 1, {"subtype": "ULAW"}),
    "studio.wav": (48000, 2, {"subtype": "PCM_24"}),
    "float.wav": (22050, 3, {"subtype": "FLOAT"}),
    "disc.flac": (44100, 2, {}),
    "song.mp3": (44100, 2, {}),
    "talk.ogg": (32000, 1, {"subtype": "VORBIS"}),
}
PYAV = {
    "call.opus": (48000, 2, "ogg", "libopus"),
    "memo.m4a": (44100, 1, "ipod", "aac"),
    "prompt.g722": (16000, 1, "g722", "g722"),
}


@pytest.fixture(scope="module")
def speech() -> tuple[np.ndarray, int]:
    audio, rate = soundfile.read(MANIFEST.parent / "echo.flac", dtype="float32")
    return audio, rate


@pytest.fixture(scope="module")
def folder(tmp_path_factory, speech) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    for name, (rate, channels, *how) in {**SOUNDFILE, **PYAV}.items():
        audio = np.tile(soxr.resample(speech[0], speech[1], rate)[:, None], channels)
        if name in SOUNDFILE:
            soundfile.write(folder / name, audio, rate, **how[0])
        else:
            write_pyav(folder / name, audio, rate, *how)
        (folder / name).with_suffix(".txt").write_text(f"This is {name}.")
    return folder


def write_pyav(path: Path, audio: np.ndarray, rate: int, container_format: str, codec: str) -> None:
    layout = "mono" if audio.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        pcm = np.ascontiguousarray((audio * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def test_all_formats_are_prepared(folder, config, speech):
    prepared, _ = prepare(config(folder, **{"dedup.fingerprint": False}))  # they all say the same
    assert prepared.rejected == {} and prepared.totals["train"]["turns"] == len(SOUNDFILE) + len(PYAV)
    dataset = ShardedDataset(config(folder).output)
    frames = len(speech[0]) / speech[1] * 12.5
    for i in range(len(dataset)):
        sample = dataset.read(i)
        assert sample.turns[0].text == f"This is {sample.audio}."
        # Encoders pad the sound at both ends, by less than 0.1 s.
        assert abs(sample.num_frames - frames) <= 2, sample.audio


@pytest.mark.parametrize("name", [*SOUNDFILE, *PYAV])
def test_sound_survives_reading(folder, config, speech, name):
    recording = make_plan(config(folder)).recording(f"local/{name}")
    want = soxr.resample(speech[0], speech[1], 24000)
    got = RecordingAudio(recording).track(None, 24000)[: len(want)]
    want = want[: len(got)]
    shift = 2400  # encoders delay the sound by up to 0.1 s
    padded = np.pad(want, shift)
    best = max(np.dot(got, padded[s : s + len(got)]) for s in range(0, 2 * shift, 4))
    assert best / (np.linalg.norm(got) * np.linalg.norm(want)) > 0.9


def test_channels_rates_and_times_of_one_file(tmp_path, config):
    """A turn's codes come from its own channel and time span alone, whatever the file around it."""
    rate = 16000
    left, right = noise(2.0, rate, 1), noise(2.0, rate, 2)
    soundfile.write(tmp_path / "both.flac", np.stack([left, right], axis=1), rate)
    soundfile.write(tmp_path / "right.wav", right[8000:24000], rate)
    soundfile.write(tmp_path / "mix.wav", (left + right) / 2, rate, subtype="FLOAT")
    both = [turn("a", 0, 2.0, channel=0), turn("b", 0.5, 1.5, channel=1), turn("a", 0.7, 1.9)]
    rows = [
        {"audio": "both.flac", "turns": both},
        {"audio": "right.wav", "turns": [turn("b", 0, 1.0)]},
        {"audio": "mix.wav", "turns": [turn("a", 0.7, 1.9)]},
    ]
    prepare(config(write_manifest(tmp_path / "m.jsonl", rows)))
    dataset = ShardedDataset(tmp_path / "out")
    samples = {sample.audio: sample for sample in map(dataset.read, range(len(dataset)))}
    codes = [
        samples["both.flac"].codes[:, t.start_frame : t.start_frame + t.num_frames] for t in samples["both.flac"].turns
    ]
    assert [part.shape for part in codes] == [(5, 25), (5, 13), (5, 15)]
    # But for rounding: what lies around the span decides in which order a processor adds up.
    assert (codes[1] == samples["right.wav"].codes).mean() > 0.95
    assert (codes[2] == samples["mix.wav"].codes).mean() > 0.95  # 16-bit rounding of the flac
    assert (codes[0][:, 6:19] == codes[1]).mean() < 0.5
