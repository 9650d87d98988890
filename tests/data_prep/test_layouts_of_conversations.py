"""Conversations with a file or a stream for each speaker, and files of other kinds, found by themselves."""

import gzip
import json
import os
import shutil
import socket
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from layouts import RATE, Source, jsonl, text, wav

from data_prep.audio.recording import RecordingAudio
from data_prep.inputs.kinds import headerless_hint
from data_prep.inputs.probe import probe
from data_prep.inputs.sources import FORMATS


def test_seamless_interaction(tmp_path):
    words = [{"word": "Hi", "start": 0.1, "end": 0.2}, {"word": "there.", "start": 0.2, "end": 0.4}]
    for who, start in (("P0799", 0.1), ("P1327A", 0.5)):
        wav(tmp_path / f"V00_S0644_I00000129_{who}.wav")
        about = {
            "id": "x",
            "metadata:transcript": [{"words": words, "start": start, "end": start + 0.3, "transcript": f"I am {who}."}],
            "metadata:vad": [{"start": start, "end": start + 0.3}],
        }
        text(tmp_path / f"V00_S0644_I00000129_{who}.json", json.dumps(about))
    source = Source(tmp_path)
    assert source.said == {
        "V00_S0644_I00000129": [("P0799", 0.1, 0.4, "I am P0799.", 0), ("P1327A", 0.5, 0.8, "I am P1327A.", 1)]
    }
    (entry,) = source.recordings.values()
    found = probe(entry.locator, entry.audio)
    assert (found.channels, found.seconds, entry.two_channel) == (2, 1.0, "yes")
    for channel, who in enumerate(("P0799", "P1327A")):
        heard, _ = soundfile.read(tmp_path / f"V00_S0644_I00000129_{who}.wav", dtype="float32")
        np.testing.assert_array_equal(RecordingAudio(entry).track(channel, RATE), heard)
    assert probe(entry.locator, entry.audio).sha256 == found.sha256 and not source.notes.losses


def test_turnbench(tmp_path):
    for name in ("combined_audio", "speaker_1_audio", "speaker_2_audio"):
        wav(tmp_path / "task7" / f"{name}.wav")
    for speaker in (1, 2):
        for annotator in "ab":
            cue = f"1\n00:00:00,{speaker}00 --> 00:00:00,{speaker}50\nSaid by {speaker}{annotator}.\n"
            text(tmp_path / "task7" / f"speaker_{speaker}_annotation_{annotator}.srt", cue)
    text(tmp_path / "task7" / "metadata.json", '{"task_id": "7"}')
    source = Source(tmp_path)
    assert source.said == {
        "task7": [("speaker_1", 0.1, 0.15, "Said by 1a.", 0), ("speaker_2", 0.2, 0.25, "Said by 2a.", 1)]
    }
    assert source.notes.set_aside == {
        "mix of the speakers' own files": ["task7/combined_audio.wav"],
        "further annotations of the same speaker": [f"task7/speaker_{n}_annotation_b.srt" for n in (1, 2)],
        ".json (JSON)": ["task7/metadata.json"],
    }


def test_tracks_with_one_annotation_of_the_conversation(tmp_path):
    """As in Open Yap and otoSpeech: tracks of a call, and turns or words with the names of the tracks."""
    for name in ("call1_spk1", "call1_spk2", "call2-agent", "call2-customer"):
        wav(tmp_path / f"{name}.flac")
    rows = [
        {"speaker": "spk2", "start": 0.5, "end": 0.9, "text": "Yes?"},
        {"speaker": "spk1", "start": 0.1, "end": 0.4, "text": "Hi."},
    ]
    text(tmp_path / "call1.json", json.dumps({"segments": rows}))
    text(tmp_path / "call2-agent.json", json.dumps({"words": [{"word": "Hello.", "start": 0.1, "end": 0.4}]}))
    source = Source(tmp_path)
    assert source.said == {
        "call1": [("spk1", 0.1, 0.4, "Hi.", 0), ("spk2", 0.5, 0.9, "Yes?", 1)],
        "call2": [("agent", 0.1, 0.4, "Hello.", 0)],
    }
    assert source.notes.unused == {
        "files of speakers without an annotation, whose speech is not used": ["call2-customer.flac"]
    }
    text(tmp_path / "call1.json", json.dumps({"segments": [rows[0] | {"speaker": "else"}]}))
    assert "speaker 'else' is none of the files' spk1, spk2" in Source(tmp_path).rejected["call1"].message


def test_letters_and_numbers_are_speakers_only_when_asked(tmp_path):
    for name in ("call/call_A", "call/call_B", "album/track 01", "album/track 02", "book/b_P001", "book/b_P002"):
        wav(tmp_path / f"{name}.wav")
    for n in range(9):
        wav(tmp_path / "voices" / f"speaker_{n}.wav")
    assert len(Source(tmp_path).recordings) == 15
    assert list(Source(tmp_path / "call", format="speakers").recordings) == ["call"]
    assert list(Source(tmp_path / "album", format="speakers").recordings) == ["track 01.wav"]


def write_video(path: Path, streams: int) -> list[np.ndarray]:
    """A container with audio streams of different noise, without loss."""
    tracks = [soundfile.read(wav(path.parent / "parts" / f"{n}.wav", 0.5), dtype="int16")[0] for n in range(streams)]
    with av.open(str(path), "w") as container:
        made = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in tracks]
        for stream, samples in zip(made, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    shutil.rmtree(path.parent / "parts")
    return [samples.astype(np.float32) / 32768 for samples in tracks]


def test_streams_of_a_video_are_channels(tmp_path):
    tracks = write_video(tmp_path / "call.mkv", 2)
    write_video(tmp_path / "one.mkv", 1)
    source = Source(tmp_path)
    entry = source.recordings["call.mkv"]
    assert probe(entry.locator, entry.audio).channels == 2 and entry.two_channel == "yes"
    for channel, samples in enumerate(tracks):
        np.testing.assert_array_equal(RecordingAudio(entry).track(channel, RATE), samples)
    assert source.recordings["one.mkv"].locator.made is None
    assert source.notes.remarks == {"files with several audio streams: each stream is a channel": ["call.mkv"]}


def test_containers_that_decode_are_recordings(tmp_path):
    samples, _ = soundfile.read(wav(tmp_path / "in.wav", 0.5), dtype="int16")
    soundfile.write(tmp_path / "a.sph", samples, RATE, format="NIST", subtype="PCM_16")
    for suffix, codec in (
        ("mov", "pcm_s16le"),
        ("mkv", "pcm_s16le"),
        ("avi", "pcm_s16le"),
        ("m4b", "aac"),
        ("ts", "mp2"),
    ):
        rate = RATE if codec != "mp2" else 16000
        form = {"m4b": "mp4", "ts": "mpegts"}.get(suffix)
        with av.open(str(tmp_path / f"a.{suffix}"), "w", format=form) as container:
            stream = container.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            for resampled in av.AudioResampler(
                stream.format, "mono", rate, frame_size=stream.frame_size or None
            ).resample(frame):
                container.mux(stream.encode(resampled))
            container.mux(stream.encode(None))
    source = Source(tmp_path)
    assert {Path(name).suffix[1:] for name in source.recordings} == {"wav", "sph", "mov", "mkv", "avi", "m4b", "ts"}
    for name, entry in source.recordings.items():
        assert probe(entry.locator, name).seconds == pytest.approx(0.5, abs=0.15), name
    assert not source.notes.losses


def test_headerless_audio_is_refused_by_name_everywhere(tmp_path):
    wav(tmp_path / "good.wav")
    (tmp_path / "a.ul").write_bytes(b"\x7f" * 800)
    source = Source(tmp_path)
    assert list(source.recordings) == ["good.wav"] and source.reasons == {"a.ul": "audio_corrupt"}
    assert "ffmpeg -f mulaw -ar 8000" in source.rejected["a.ul"].message
    for name, encoding in (("A.ALAW", "alaw"), ("a.al", "alaw"), ("a.ulaw", "mulaw"), ("a.pcm", "s16le")):
        assert f"convert it first with the right ones, such as: ffmpeg -f {encoding} " in headerless_hint(name)
    source = Source(jsonl(tmp_path / "m.jsonl", [{"audio": "pcm.raw"}, {"audio": "good.wav"}]))
    assert source.reasons == {"pcm.raw": "audio_corrupt"} and list(source.recordings) == ["good.wav"]
    with pytest.raises(ValueError, match=r"a\.ul: audio without a header"):
        Source(tmp_path / "a.ul")


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.tar.gz", "a.tar.bz2", "a.7z"])
def test_archives_are_refused_by_name_with_what_to_do(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"PK")
    for given in (tmp_path / "in", tmp_path / "in" / name):
        with pytest.raises(ValueError, match="unpack it first"):
            Source(given)
    wav(tmp_path / "in" / "good.wav")
    ((kind, names),) = Source(tmp_path / "in").notes.set_aside.items()
    assert "archive, unpack it" in kind and names == [name]


def test_a_compressed_file_named_tar_says_so(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x" * 2000))
    assert "it is compressed: unpack it first" in Source(tmp_path / "a.tar").rejected["a.tar"].message


def test_a_fifo_a_socket_or_a_device_is_skipped_by_name(tmp_path, monkeypatch):
    wav(tmp_path / "good.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "device.wav").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the name of a socket may have 108 bytes
        server.bind("socket.wav")
        source = Source(tmp_path)
        assert list(source.recordings) == ["good.wav"]
        assert source.notes.set_aside == {
            "not a file, but a FIFO, a socket or a device": ["device.wav", "pipe.wav", "socket.wav"]
        }
        with pytest.raises(ValueError, match=r"pipe\.wav: not a file, but a FIFO"):
            Source(tmp_path / "pipe.wav")
    (entry,) = Source(jsonl(tmp_path / "m.jsonl", [{"audio": "pipe.wav"}])).recordings.values()
    assert probe(entry.locator, "pipe.wav").reason == "audio_corrupt"


def test_siblings_with_one_text_cost_only_the_copy(tmp_path):
    for name in ("x.wav", "x.mp3", "y.wav"):
        wav(tmp_path / name)
    text(tmp_path / "x.txt", "Hi.")
    source = Source(tmp_path)
    assert source.said == {"x.wav": [("0", 0.0, None, "Hi.")], "y.wav": None} and source.reasons == {
        "x.mp3": "duplicate_file"
    }


def test_texts_in_a_folder_of_their_own_find_their_audio(tmp_path):
    for name in ("a", "b"):
        wav(tmp_path / "wav" / f"{name}.wav")
        text(tmp_path / "txt" / f"{name}.txt", name)
    assert Source(tmp_path).said == {f"wav/{name}.wav": [("0", 0.0, None, name)] for name in "ab"}
    wav(tmp_path / "show" / "c.wav"), wav(tmp_path / "other" / "d.wav")
    text(tmp_path / "other" / "c.txt", "of a file that is missing")
    source = Source(tmp_path)
    assert source.said["show/c.wav"] is None and source.reasons == {"other/c": "audio_missing"}


def test_a_format_that_is_named_and_not_there_is_an_error(tmp_path):
    wav(tmp_path / "a.wav")
    for layout in FORMATS:
        if layout != "files":
            with pytest.raises(ValueError, match=f"holds nothing in the layout format={layout}"):
                Source(tmp_path, format=layout)
