"""Data sets of read speech and of Hugging Face are read as what they are, found by themselves."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from layouts import RATE, Source, jsonl, text, wav

from data_prep.audio.recording import RecordingAudio
from data_prep.inputs.probe import probe


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
