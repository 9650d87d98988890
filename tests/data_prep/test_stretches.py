"""Stretches of long files: the samples of decoding all, bit for bit, for the price of decoding once."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bad_files import speech
from made_recordings import write_pyav

import data_prep.audio.stretches as stretches
from data_prep.audio.decode import open_audio
from data_prep.audio.made import open_made
from data_prep.audio.stretches import read_stretch
from data_prep.reasons import RejectedRecording
from data_prep.records import Made

RATE = 16000
NAMES = ("a.wav", "a.flac", "a.mp3", "a.ogg", "a.opus", "a.m4a", "joined.mp3", "joined.flac", "joined.ogg")


@pytest.fixture(scope="module")
def long_files(tmp_path_factory) -> Path:
    """23 s of two channels each; the joined ones are a file of 23 s and one of 11 s behind it."""
    folder = tmp_path_factory.mktemp("long")
    once = speech("echo")[0]
    talk = np.tile(once, 2)
    stereo = np.stack([talk, np.roll(talk, 9000)], axis=1)
    soundfile.write(folder / "a.wav", stereo, 44100, subtype="PCM_24")
    soundfile.write(folder / "a.flac", stereo, RATE)
    soundfile.write(folder / "a.mp3", stereo, RATE)
    soundfile.write(folder / "a.ogg", stereo, 32000, format="OGG", subtype="VORBIS")
    soundfile.write(folder / "a.opus", stereo, RATE, format="OGG", subtype="OPUS")
    write_pyav(folder / "a.m4a", talk, 44100, "ipod", "aac")
    for kind, subtype in (("mp3", None), ("flac", None), ("ogg", "VORBIS")):
        parts = []
        for number, sound in enumerate((talk, once)):
            soundfile.write(folder / f"part{number}.{kind}", sound, RATE, subtype=subtype)
            parts.append((folder / f"part{number}.{kind}").read_bytes())
        (folder / f"joined.{kind}").write_bytes(b"".join(parts))
    return folder


class Reads:
    """Counts the files that are opened to be decoded, and the bytes that are read of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = self.bytes = 0
        open_path = stretches.open_path
        monkeypatch.setattr(stretches, "_open_files", stretches._OpenFiles())

        def opened(path):
            self.opened += 1
            file = open_path(path)
            read = file.read

            class Counted:
                seek, tell, close = file.seek, file.tell, file.close

                def read(_, size=-1):
                    data = read(size)
                    self.bytes += len(data)
                    return data

            return Counted()

        monkeypatch.setattr(stretches, "open_path", opened)


def whole(path: Path) -> tuple[int, np.ndarray]:
    with path.open("rb") as file:
        reader = open_audio(file, path.name)
        return reader.header.sample_rate, np.concatenate(list(reader.blocks()))


@pytest.mark.parametrize("name", NAMES)
def test_many_stretches_of_a_file_are_those_of_the_whole_and_read_it_once(long_files, monkeypatch, name):
    rate, samples = whole(long_files / name)
    seconds = len(samples) / rate
    reads = Reads(monkeypatch)
    spans = [(place / 2, place / 2 + 0.7) for place in range(int(2 * seconds))]
    spans = spans[::2] + spans[1::2] + [(3.3, 3.3), (seconds - 0.1, seconds + 5), (seconds + 1, seconds + 2)]
    for start, end in spans:
        with open_made(Made([str(long_files / name)], start=start, end=end)) as file:
            found, of = soundfile.read(file, dtype="float32", always_2d=True)
        assert of == rate and found.shape[1] == samples.shape[1]
        np.testing.assert_array_equal(found, samples[round(start * rate) : round(end * rate)])
    np.testing.assert_array_equal(read_stretch(str(long_files / name), 20.0, None)[1], samples[20 * rate :])
    size = (long_files / name).stat().st_size
    # wav and flac are entered in the middle, which takes flac some search; the others are decoded once
    assert reads.opened == 1 and reads.bytes < (6 if name in ("a.wav", "a.flac") else 3) * size


def test_a_stretch_at_the_beginning_does_not_decode_the_rest(long_files, monkeypatch):
    reads = Reads(monkeypatch)
    read_stretch(str(long_files / "a.mp3"), 1.0, 2.0)
    assert reads.bytes < (long_files / "a.mp3").stat().st_size / 2


def test_two_files_in_turn_stay_open_and_a_third_closes_one(long_files, monkeypatch):
    reads = Reads(monkeypatch)
    for name in ("a.mp3", "a.ogg", "a.mp3", "a.ogg", "a.opus", "a.ogg", "a.mp3"):
        read_stretch(str(long_files / name), 1.0, 2.0)
    assert reads.opened == 4


def test_a_file_that_was_replaced_is_read_anew(long_files, tmp_path):
    path = tmp_path / "x.mp3"
    path.write_bytes((long_files / "a.mp3").read_bytes())
    first = read_stretch(str(path), 1.0, 2.0)[1]
    (tmp_path / "new").write_bytes((long_files / "joined.mp3").read_bytes())
    os.replace(tmp_path / "new", path)
    second = read_stretch(str(path), 1.0, 2.0)[1]
    assert first.shape == (RATE, 2) and second.shape == (RATE, 1)


def test_damage_rejects_the_stretches_behind_it_and_no_others(long_files, tmp_path, monkeypatch):
    content = (long_files / "a.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    reads = Reads(monkeypatch)
    for _ in range(2):
        assert len(read_stretch(str(tmp_path / "cut.mp3"), 2.0, 9.0)[1]) == 7 * RATE
        for end in (20.0, None):
            with pytest.raises(RejectedRecording, match="cut off after"):
                read_stretch(str(tmp_path / "cut.mp3"), 15.0, end)
    assert reads.opened == 1


def test_after_a_failure_of_the_storage_the_file_is_read_from_its_beginning(long_files, monkeypatch):
    path = str(long_files / "a.mp3")
    samples = whole(long_files / "a.mp3")[1]
    reads = Reads(monkeypatch)
    read_stretch(path, 0.0, 1.0)
    (file,) = stretches._open_files._files.values()

    def fail(data):
        raise OSError("no space left on device")

    monkeypatch.setattr(file._store, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        read_stretch(path, 5.0, 6.0)
    np.testing.assert_array_equal(read_stretch(path, 5.0, 6.0)[1], samples[5 * RATE : 6 * RATE])
    assert reads.opened == 2


def test_threads_share_a_file(long_files, monkeypatch):
    samples = whole(long_files / "a.ogg")[1]
    reads = Reads(monkeypatch)
    found: dict[int, np.ndarray] = {}

    def read(place):
        found[place] = read_stretch(str(long_files / "a.ogg"), place, place + 1)[1]

    threads = [threading.Thread(target=read, args=(place,)) for place in (9, 3, 0, 12, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, part in found.items():
        np.testing.assert_array_equal(part, samples[place * 32000 : (place + 1) * 32000])
    assert len(found) == 5 and reads.opened == 1
