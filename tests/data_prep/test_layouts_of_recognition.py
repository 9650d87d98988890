"""Kaldi, Lhotse and NeMo folders are read as what they are, found by themselves."""

import tarfile
from pathlib import Path

import pytest
from layouts import RATE, Source, jsonl, text, wav

from data_prep.inputs.probe import probe


def test_kaldi(tmp_path):
    wav(tmp_path / "audio" / "long.wav", 3.0), wav(tmp_path / "audio" / "call.wav", 3.0, channels=2)
    train = tmp_path / "data" / "train"
    text(
        train / "wav.scp",
        "long audio/long.wav\ncall-A sph2pipe -f wav -p -c 1 audio/call.wav |\n"
        "call-B sph2pipe -f wav -p -c 2 audio/call.wav |\n"
        "made sox -n -t wav - synth 3 sine 300 |\ngone audio/gone.wav\n",
    )
    text(train / "segments", "u1 long 0.5 1.0\nu2 long 1.5 2.5\nu3 call-A 0.1 0.9\nu4 call-B 1.0 2.0\nu5 nowhere 0 1\n")
    text(train / "text", "u1 so what\nu2 nothing\nu3 hello\nu4 hi ann\nu9 of nothing\n")
    text(train / "utt2spk", "u1 ann\nu2 bob\nu3 cid\nu4 dan\n")
    text(train / "spk2utt", "ann u1\n")
    source = Source(tmp_path)
    assert source.said == {
        "audio/call.wav": [("cid", 0.1, 0.9, "hello", 0), ("dan", 1.0, 2.0, "hi ann", 1)],
        "data/train/gone": None,
        "data/train/long": [("ann", 0.5, 1.0, "so what"), ("bob", 1.5, 2.5, "nothing")],
    }
    assert source.recordings["data/train/long"].locator.path == str(tmp_path / "audio" / "long.wav")
    assert source.reasons == {"data/train/made": "audio_missing", "data/train/nowhere": "audio_missing"}
    assert "a command that is not run" in source.rejected["data/train/made"].message
    assert source.notes.without_audio == ["data/train/segments: nowhere (1 segments)", "data/train/text: u9"]
    assert source.notes.layouts == {"kaldi": 4} and not source.notes.set_aside


def test_splits_of_kaldi_folders_are_kept(tmp_path):
    for split in ("train", "dev", "test"):
        wav(tmp_path / "audio" / f"{split}.wav")
        text(tmp_path / "data" / split / "wav.scp", f"{split} audio/{split}.wav\n")
        text(tmp_path / "data" / split / "text", f"{split} so what\n")
    source = Source(tmp_path)
    assert {name: entry.split for name, entry in source.recordings.items()} == {
        "data/train/train": "train",
        "data/dev/dev": "val",
    }
    assert source.reasons == {"data/test/test": "test_split"}


def test_kaldi_without_segments(tmp_path):
    wav(tmp_path / "a.wav"), wav(tmp_path / "extra.wav")
    text(tmp_path / "wav.scp", f"a {tmp_path / 'a.wav'}\n")
    text(tmp_path / "text", "a so what\n")
    text(tmp_path / "utt2spk", "a ann\n")
    source = Source(tmp_path)
    assert source.said == {"a": [("ann", 0.0, None, "so what")], "extra.wav": None}
    assert source.recordings["a"].group == "ann" and source.notes.layouts == {"kaldi": 1, "files": 1}
    assert list(Source(tmp_path, format="kaldi").recordings) == ["a"]


def lhotse_recording(path: Path, channels: int = 1) -> dict:
    ids = list(range(channels))
    return {
        "id": path.stem,
        "sources": [{"type": "file", "channels": ids, "source": str(path)}],
        "sampling_rate": RATE,
        "num_samples": 3 * RATE,
        "duration": 3.0,
        "channel_ids": ids,
    }


def supervision(recording: str, start: float, speaker: str, words: str, channel: int = 0) -> dict:
    return {
        "id": f"{recording}-{start}",
        "recording_id": recording,
        "start": start,
        "duration": 0.5,
        "channel": channel,
        "text": words,
        "language": "German",
        "speaker": speaker,
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lhotse_recordings_and_supervisions(tmp_path, suffix):
    paths = [wav(tmp_path / "a.wav", 3.0), wav(tmp_path / "b.wav", 3.0, channels=2)]
    jsonl(tmp_path / f"recordings{suffix}", [lhotse_recording(paths[0]), lhotse_recording(paths[1], 2)])
    rows = [
        supervision("a", 1.5, "bob", "Ja."),
        supervision("a", 0.5, "ann", "Na?"),
        supervision("b", 1.0, "cid", "So.", 1),
    ]
    jsonl(tmp_path / f"supervisions{suffix}", [*rows, supervision("c", 1.0, "dan", "Weg.")])
    source = Source(tmp_path)
    assert source.said == {
        "a.wav": [("ann", 0.5, 1.0, "Na?"), ("bob", 1.5, 2.0, "Ja.")],
        "b.wav": [("cid", 1.0, 1.5, "So.", 1)],
    }
    assert {recording.lang for recording in source.recordings.values()} == {"de"}
    assert source.reasons == {"c": "audio_missing"} and len(source.notes.without_audio) == 1


def test_lhotse_cuts_of_one_recording_become_its_turns(tmp_path):
    path = wav(tmp_path / "audio" / "a.wav", 3.0)
    cuts = [
        {
            "id": f"cut{start}",
            "start": start,
            "duration": 1.0,
            "channel": 0,
            "supervisions": [supervision("a", 0.25, "ann", f"from {start}")],
            "recording": lhotse_recording(Path("/of/another/machine/audio/a.wav")),
            "type": "MonoCut",
        }
        for start in (0.5, 2.0)
    ]
    file = jsonl(tmp_path / "cuts.jsonl.gz", [*cuts, {"id": "mixed", "tracks": [], "type": "MixedCut"}])
    for given in (tmp_path, file):
        source = Source(given)
        (recording,) = source.recordings.values()
        assert [turn.start for turn in recording.turns] == [0.75, 2.25] and recording.turns[1].text == "from 2.0"
        assert source.reasons == {"mixed": "audio_missing"}
        if given == tmp_path:
            assert recording.locator.path == str(path)


def test_lhotse_cuts_without_supervisions_are_their_stretches(tmp_path):
    """A turn each, to be recognized; a cut of the whole recording is the recording."""
    for name in "ab":
        wav(tmp_path / "audio" / f"{name}.wav", 3.0)
    stretches = [("a", 0.5, 1.0), ("a", 2.0, 0.75), ("b", 0.0, 3.0)]
    cuts = [
        {
            **{"id": f"{name}{start}", "start": start, "duration": length, "channel": 0, "type": "MonoCut"},
            "recording": lhotse_recording(Path(f"/elsewhere/audio/{name}.wav")) | {"duration": 3.0},
        }
        for name, start, length in stretches
    ]
    jsonl(tmp_path / "cuts.jsonl.gz", cuts)
    recordings = Source(tmp_path).recordings
    turns = recordings["audio/a.wav"].turns
    assert [(turn.start, turn.end, turn.text) for turn in turns] == [(0.5, 1.5, None), (2.0, 2.75, None)]
    assert recordings["audio/b.wav"].turns is None


def test_lhotse_shar(tmp_path):
    folder = tmp_path / "shar"
    for name, seconds in (("cut-1", 1.0), ("cut/2", 2.0)):
        wav(tmp_path / "audio" / f"{name}.flac", seconds)
    folder.mkdir()
    with tarfile.open(folder / "recording.000000.tar", "w") as tar:
        for name in ("cut-1", "cut/2"):
            tar.add(tmp_path / "audio" / f"{name}.flac", f"{name}.flac")
            tar.add(text(tmp_path / "about.json", "{}"), f"{name}.json")
    cuts = [
        {
            "id": name,
            "start": 5.0,
            "duration": 1.0,
            "supervisions": [supervision("a", 0.25, "ann", name)],
            "type": "MonoCut",
            "custom": {"group": f"show of {name}"},
        }
        for name in ("cut-1", "cut/2", "gone")
    ]
    jsonl(folder / "cuts.000000.jsonl.gz", [cut | {"recording": {"id": "a", "sources": []}} for cut in cuts])
    (folder / "features.000000.tar").write_bytes(b"")
    source = Source(folder)
    assert source.said == {name: [("ann", 0.25, 0.75, name)] for name in ("cut-1", "cut/2")}
    assert source.reasons == {"gone": "audio_missing"} and source.notes.layouts == {"shar": 2}
    assert [recording.group for recording in source.recordings.values()] == ["show of cut-1", "show of cut/2"]
    assert source.notes.set_aside == {"fields of Shar other than recording": ["features.000000.tar"]}
    assert probe(source.recordings["cut/2"].locator, "x.flac").seconds == 2.0


@pytest.mark.parametrize("name", ["train_manifest.json", "manifest.jsonl"])
def test_nemo_lines_of_one_file_are_its_turns(tmp_path, name):
    for audio in ("long", "b"):
        wav(tmp_path / "wavs" / f"{audio}.wav", 3.0)
    rows = [
        {"audio_filepath": "wavs/long.wav", "offset": 1.5, "duration": 0.5, "text": "nothing", "speaker": "bob"},
        {"audio_filepath": "wavs/long.wav", "offset": 0.5, "duration": 0.25, "text": "so what", "speaker": "ann"},
        {"audio_filepath": "wavs/b.wav", "duration": 3.0, "text": "hello", "lang": "de"},
    ]
    file = jsonl(tmp_path / name, rows)
    for given in (tmp_path, file):
        source = Source(given)
        assert source.said == {
            "wavs/b.wav": [("0", 0.0, None, "hello")],
            "wavs/long.wav": [("ann", 0.5, 0.75, "so what"), ("bob", 1.5, 2.0, "nothing")],
        }
        assert source.recordings["wavs/b.wav"].lang == "de" and not source.rejected


def test_several_lines_of_our_own_manifest_are_one_recording(tmp_path):
    wav(tmp_path / "long.wav", 3.0)
    turns = [{"speaker": "a", "text": f"Part {n}.", "start": n, "end": n + 1} for n in range(2)]
    rows = [{"audio": "long.wav", "id": f"s{n}", "turns": [turn]} for n, turn in enumerate(turns)]
    source = Source(jsonl(tmp_path / "m.jsonl", [*rows, rows[0]]))
    assert source.said == {"long.wav": [("a", 0.0, 1.0, "Part 0."), ("a", 1.0, 2.0, "Part 1.")]}
    jsonl(tmp_path / "m.jsonl", [rows[0] | {"split": "train"}, rows[1] | {"split": "val"}])
    with pytest.raises(
        ValueError, match=r"lines of long\.wav give it the split 'train', 'val'; one file has one split"
    ):
        Source(tmp_path / "m.jsonl")
