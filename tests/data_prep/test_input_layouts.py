"""Folders in other people's layouts are read as what they are, found by themselves."""

import gzip
import json
import os
import shutil
import socket
import tarfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from layouts import RATE, Source, text, wav

from data_prep.audio.recording import RecordingAudio
from data_prep.inputs.probe import probe
from data_prep.inputs.sources import FORMATS


def jsonl(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".gz":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return path
    return text(path, rows)


# ------------------------------------------------------------------------------------------- speech recognition


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


# --------------------------------------------------------------------------------------------- read speech


def test_emilia_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "EN-B000000.tar", "w") as tar:
        for n in range(2):
            about = {
                "id": f"EN_W{n}",
                "wav": f"EN/mp3/EN_W{n}.mp3",
                "text": " So.",
                "speaker": f"EN_S{n}",
                "language": "en",
                "dnsmos": 3.4,
            }
            tar.add(text(tmp_path / "about.json", json.dumps(about)), f"EN_W{n}.json")
            tar.add(wav(tmp_path / f"{n}.mp3"), f"EN_W{n}.mp3")
    source = Source(tmp_path / "EN-B000000.tar", lang="fr")
    assert source.said == {f"EN-B000000.tar/EN_W{n}.mp3": [(f"EN_S{n}", 0.0, None, "So.")] for n in range(2)}
    assert {(entry.lang, entry.group) for entry in source.recordings.values()} == {("en", "EN_S0"), ("en", "EN_S1")}
    assert not source.notes.losses


def test_emilia_lines(tmp_path):
    for n in range(3):
        wav(tmp_path / "mp3" / f"EN_{n}.wav")
    rows = [
        {
            "id": f"EN_{n}",
            "wav": f"mp3/EN_{n}.wav",
            "text": f"Text {n}.",
            "speaker": f"EN_S{n % 2}",
            "language": "en",
            "dnsmos": 3 + n / 10,
        }
        for n in range(3)
    ]
    jsonl(tmp_path / "EN.jsonl", rows)
    source = Source(tmp_path, lang="fr", min_dnsmos=3.05)
    assert source.said == {f"mp3/EN_{n}.wav": [(f"EN_S{n % 2}", 0.0, None, f"Text {n}.")] for n in (1, 2)}
    assert source.reasons == {"mp3/EN_0.wav": "quality"}
    assert {(entry.lang, entry.group) for entry in source.recordings.values()} == {("en", "EN_S0"), ("en", "EN_S1")}


def test_list_of_moshi_finetune_with_alignments_of_the_left_channel(tmp_path):
    rows = []
    for name in ("a", "b"):
        wav(tmp_path / "stereo" / f"{name}.wav", channels=2)
        words = [[name, [0.1, 0.3], "SPEAKER_MAIN"], ["there.", [0.35, 0.5], "SPEAKER_MAIN"]]
        text(tmp_path / "stereo" / f"{name}.json", json.dumps({"alignments": words}))
        rows.append({"path": f"stereo/{name}.wav", "duration": 1.0})
    wav(tmp_path / "stereo" / "c.wav", channels=2)
    file = jsonl(tmp_path / "data.jsonl", [*rows, {"path": "stereo/gone.wav", "duration": 1.0}])
    said = {f"stereo/{name}.wav": [("SPEAKER_MAIN", 0.1, 0.5, f"{name} there.", 0)] for name in ("a", "b")}
    for given in (file, tmp_path):
        source = Source(given)
        assert {name: turns for name, turns in source.said.items() if turns} == said
        assert source.notes.layouts["moshi"] == 3 and not source.rejected and not source.notes.losses
        assert list(source.notes.remarks) == [
            "alignments of the left channel alone: the right channel has no text and is not used"
        ]
        recording = source.recordings["stereo/a.wav"]
        left, _ = soundfile.read(tmp_path / "stereo" / "a.wav", dtype="float32")
        np.testing.assert_array_equal(RecordingAudio(recording).track(recording.turns[0].channel, RATE), left[:, 0])
    assert ("stereo/c.wav" in source.said) and source.notes.layouts["files"] == 1
    jsonl(file, [*rows, {"duration": 1.0}])
    with pytest.raises(ValueError, match=r"data\.jsonl, line 3: names no audio file in 'path'"):
        Source(file)


def test_ljspeech(tmp_path):
    for n in range(3):
        wav(tmp_path / "wavs" / f"LJ001-000{n}.wav")
    text(
        tmp_path / "metadata.csv",
        'LJ001-0000|In 1455 "he"|In fourteen "he"\nLJ001-0001|said|said\nLJ001-0009|gone|gone\n',
    )
    source = Source(tmp_path)
    assert source.said == {
        "wavs/LJ001-0000.wav": [("0", 0.0, None, 'In fourteen "he"')],
        "wavs/LJ001-0001.wav": [("0", 0.0, None, "said")],
        "wavs/LJ001-0002.wav": None,
    }
    assert source.reasons == {"LJ001-0009": "audio_missing"} and source.notes.without_audio == [
        "metadata.csv: LJ001-0009"
    ]


def test_vctk(tmp_path):
    for name in ("p225/p225_001_mic1", "p225/p225_001_mic2", "p226/p226_001_mic1"):
        wav(tmp_path / "wav48_silence_trimmed" / f"{name}.flac")
    text(tmp_path / "txt" / "p225" / "p225_001.txt", "Please call Stella.\n")
    text(tmp_path / "txt" / "p225" / "p225_002.txt", "Gone.\n")
    source = Source(tmp_path)
    first = "wav48_silence_trimmed/p225/p225_001_mic1.flac"
    assert source.said[first] == [("p225", 0.0, None, "Please call Stella.")]
    assert source.recordings[first].group == "p225" and source.reasons == {"p225_002": "audio_missing"}
    assert source.said["wav48_silence_trimmed/p226/p226_001_mic1.flac"] == [("p226", 0.0, None, None)]
    assert list(source.notes.set_aside) == ["second microphone of VCTK"]


def test_librispeech_with_its_splits(tmp_path):
    for split in ("train-clean-100", "dev-clean", "test-clean"):
        folder = tmp_path / split / "84" / "121123"
        wav(folder / "84-121123-0000.flac")
        text(folder / "84-121123.trans.txt", "84-121123-0000 GO DO YOU HEAR\n")
    source = Source(tmp_path)
    assert {name: entry.split for name, entry in source.recordings.items()} == {
        "dev-clean/84/121123/84-121123-0000.flac": "val",
        "train-clean-100/84/121123/84-121123-0000.flac": "train",
    }
    assert source.reasons == {"test-clean/84/121123/84-121123-0000.flac": "test_split"}
    assert source.said["dev-clean/84/121123/84-121123-0000.flac"] == [("84", 0.0, None, "GO DO YOU HEAR")]
    assert {entry.group for entry in source.recordings.values()} == {"84"} and not source.notes.losses


def test_libritts(tmp_path):
    wav(tmp_path / "84" / "84_1_000.wav")
    text(tmp_path / "84" / "84_1_000.normalized.txt", "Mister Smith.")
    text(tmp_path / "84" / "84_1_000.original.txt", "Mr. Smith.")
    source = Source(tmp_path)
    assert source.said == {"84/84_1_000.wav": [("84", 0.0, None, "Mister Smith.")]} and not source.notes.losses


def test_common_voice_with_its_splits(tmp_path):
    head = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\n"
    for n, split in enumerate(("train", "dev", "test")):
        wav(tmp_path / "de" / "clips" / f"cv_{n}.mp3")
        text(tmp_path / "de" / f"{split}.tsv", f'{head}c{n}\tcv_{n}.mp3\t\tSatz "{n}\t2\tde\n')
    source = Source(tmp_path)
    assert source.said == {
        "de/clips/cv_0.mp3": [("c0", 0.0, None, 'Satz "0')],
        "de/clips/cv_1.mp3": [("c1", 0.0, None, 'Satz "1')],
    }
    assert [(entry.split, entry.lang, entry.group) for _, entry in sorted(source.recordings.items())] == [
        ("train", "de", "c0"),
        ("val", "de", "c1"),
    ]
    assert source.reasons == {"de/clips/cv_2.mp3": "test_split"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_audiofolder(tmp_path, suffix):
    for split in ("train", "test"):
        wav(tmp_path / split / "a.wav")
        row = {"file_name": "a.wav", "transcription": "So, what?", "speaker_id": "7"}
        if suffix == "jsonl":
            jsonl(tmp_path / split / "metadata.jsonl", [row])
        else:
            sign = "," if suffix == "csv" else "\t"
            cells = sign.join(f'"{value}"' for value in row.values())
            text(tmp_path / split / f"metadata.{suffix}", f"{sign.join(row)}\n{cells}\n")
    source = Source(tmp_path)
    assert source.said == {"train/a.wav": [("7", 0.0, None, "So, what?")]} and source.reasons == {
        "test/a.wav": "test_split"
    }
    assert source.notes.layouts == {"audiofolder": 2} and not source.notes.losses


def test_spans(tmp_path):
    samples, _ = soundfile.read(wav(tmp_path / "show.wav", 3.0), dtype="float32")
    rows = [
        {"path": "show.wav", "start": 0.5, "end": 1.0, "text": "So what?", "speaker": "ann"},
        {"path": "show.wav", "start": 1.5, "end": 2.25},
        {"audio_url": "memory://show.wav", "episode_start_sec": 1, "episode_end_sec": 2, "speakers": ["a", "b"]},
    ]
    source = Source(jsonl(tmp_path / "spans.jsonl", rows))
    assert source.said == {
        "memory://show.wav@1-2": None,
        "show.wav": [("ann", 0.5, 1.0, "So what?")],
        "show.wav@1.5-2.25": None,
    }
    cut = source.recordings["show.wav@1.5-2.25"]
    assert probe(cut.locator, cut.audio).seconds == 0.75 and cut.group == "show.wav"
    np.testing.assert_array_equal(RecordingAudio(cut).track(None, RATE), samples[int(1.5 * RATE) : int(2.25 * RATE)])


# --------------------------------------------------------------------------------------- Hugging Face


def dataset_rows(folder: Path, names: list[str], inside: bool = True) -> pa.Table:
    rows = []
    for name in names:
        content = wav(folder / f"{name}.wav").read_bytes()
        audio = {"bytes": content if inside else None, "path": f"{name}.wav"}
        rows.append({"audio": audio, "text": f"This is {name}.", "speaker_id": name[0], "language": "de"})
    schema = pa.schema(
        [
            ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            *((column, pa.string()) for column in ("text", "speaker_id", "language")),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def test_splits_of_parquet_files_come_from_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        table = dataset_rows(tmp_path / "wavs", [f"{split}{n}" for n in range(2)])
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    source = Source(tmp_path / "data")
    assert {name.partition("-")[0]: entry.split for name, entry in source.recordings.items()} == {
        "train": "train",
        "validation": "val",
    }
    assert set(source.reasons.values()) == {"test_split"} and len(source.reasons) == 2
    assert {entry.lang for entry in source.recordings.values()} == {"de"}
    only = Source(tmp_path / "data" / "test-00000-of-00001.parquet")  # asked for by name
    assert {entry.split for entry in only.recordings.values()} == {None} and len(only.recordings) == 2


def test_parquet_of_paths_alone_reads_the_files_beside_it(tmp_path):
    pq.write_table(dataset_rows(tmp_path, ["a", "b"], inside=False), tmp_path / "d.parquet")
    source = Source(tmp_path / "d.parquet")
    assert [probe(entry.locator, "x.wav").reason for entry in source.recordings.values()] == [None, None]
    arrays = pa.Table.from_pylist([{"audio": {"array": [0.0, 0.1], "sampling_rate": RATE}, "text": "x"}])
    pq.write_table(arrays, tmp_path / "arrays.parquet")
    with pytest.raises(
        ValueError, match="holds array, sampling_rate instead of bytes and path; decoded arrays are not read"
    ):
        Source(tmp_path / "arrays.parquet")


def test_save_to_disk(tmp_path):
    root = tmp_path / "saved"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        table = dataset_rows(tmp_path / "wavs", [f"{split}{n}" for n in range(3)])
        file = str(root / split / "data-00000-of-00001.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        text(root / split / "state.json", "{}"), text(root / split / "dataset_info.json", "{}")
    text(root / "dataset_dict.json", '{"splits": ["train", "test"]}')
    source = Source(root)
    assert [entry.turns[0].text for entry in source.recordings.values()] == [f"This is train{n}." for n in range(3)]
    for n, entry in enumerate(source.recordings.values()):
        heard, _ = soundfile.read(tmp_path / "wavs" / f"train{n}.wav", dtype="float32")
        np.testing.assert_array_equal(RecordingAudio(entry).track(None, RATE), heard)
        assert (entry.split, entry.group) == ("train", "t")
    assert set(source.reasons.values()) == {"test_split"} and not source.notes.losses


# ------------------------------------------------------------------------- a file for each speaker


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


# -------------------------------------------------------------------------------- files of other kinds


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
