import fcntl
import json
import os
import resource
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from made_recordings import calls_manifest, comparable, files, noise, turn, write_manifest

from csm.audio import load_audio, resample
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.data.dataset import ShardedDataset
from data_prep.config import DiarizeBackend, TranscribeBackend
from data_prep.dataset.verify import verify
from data_prep.demo import MANIFEST
from data_prep.execution.run import run
from data_prep.inputs.plan import make_plan
from data_prep.prepare import prepare
from data_prep.records import Rejection
from data_prep.tables import read_rows

RATE = 16000


@pytest.fixture
def calls(tmp_path) -> Path:
    """A manifest of five good recordings of four turns each."""
    return calls_manifest(tmp_path)


def test_each_turn_is_encoded_on_its_own_and_stored_in_order(calls, config, tmp_path):
    prepare(config(calls))
    dataset = ShardedDataset(tmp_path / "out")
    codec = SpectralCodec.load(dataset.codec_file)
    assert codec.info == dataset.codec and len(dataset) == 5
    for sample in map(dataset.read, range(5)):
        audio = load_audio(dataset.audio_path(sample), RATE)
        assert [t.speaker for t in sample.turns] == [0, 1, 0, 1]
        for stored in sample.turns:
            alone = audio[round(stored.start * RATE) : round(stored.end * RATE)]
            codes = codec.encode(resample(alone, RATE, 24000)[None, None])[0].numpy()
            assert np.array_equal(sample.codes[:, stored.start_frame : stored.start_frame + stored.num_frames], codes)


def test_same_input_gives_identical_shards_and_index(calls, config, tmp_path):
    prepare(config(calls, **{"pack.shard_mb": 0.002}))
    prepare(config(calls, output=tmp_path / "again", **{"pack.shard_mb": 0.002}))
    first, again = comparable(tmp_path / "out"), comparable(tmp_path / "again")
    assert first == again and len([name for name in first if name.endswith(".tar")]) > 2
    assert ShardedDataset(tmp_path / "out").info.fingerprint == ShardedDataset(tmp_path / "again").info.fingerprint


@pytest.mark.slow
def test_order_in_shards_is_shuffled_by_the_seed(calls, config, tmp_path):
    orders = []
    for seed in (1, 2, 3):
        prepare(config(calls, overwrite=True, seed=seed, **{"conversation.max_turns": 1}))
        orders.append(list(ShardedDataset(tmp_path / "out").column("recording")))
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != sorted(orders[0])


def test_every_turn_is_kept_or_rejected_with_its_reason(calls, config, tmp_path):
    audio = noise(6.0, RATE, 77)
    soundfile.write(tmp_path / "mixed.wav", audio, RATE)
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF\x00\x00 this is no audio" * 50)
    (tmp_path / "empty.wav").touch()
    bad = [
        turn("a", 0.0, 1.0),
        turn("b", 1.0, 1.1),  # 1: too short
        turn("a", 1.2, 2.2),
        turn("b", 2.3, 4.9),  # 3: too long
        {**turn("a", 2.4, 3.4), "text": "  "},  # 4: empty
        turn("b", 3.5, 3.2),  # 5: ends before it starts
        turn("a", 4.0, 5.0, channel=1),  # 6: no such channel
        turn("a", 5.0, 6.05),  # rounding of the annotation: kept
        turn("b", 5.5, 6.5),  # 8: beyond the end
        turn("a", -0.5, 0.6),  # 9: before the beginning; sorts first
    ]
    good = calls.read_text()
    rows = [
        {"audio": "mixed.wav", "turns": bad},
        {"audio": "gone.wav", "turns": [turn("a", 0, 1), turn("b", 1, 2)]},
        {"audio": "corrupt.wav", "turns": [turn("a", 0, 1)]},
        {"audio": "empty.wav", "turns": [turn("a", 0, 1)]},
    ]
    write_manifest(calls, rows)
    calls.write_text(calls.read_text() + good)

    dataset, _ = prepare(config(calls, **{"turns.max_given_seconds": 2.0}))
    rows = read_rows(tmp_path / "out" / "rejects.parquet", Rejection)
    of_mixed = Counter(row.reason for row in rows if row.recording == "local/mixed.wav")
    assert of_mixed == {
        "times_outside_audio": 2,
        "too_short": 1,
        "too_long": 1,
        "empty_text": 1,
        "bad_times": 1,
        "channel_missing": 1,
    }
    whole = {row.audio: row.reason for row in rows if row.turn is None}
    assert whole == {"gone.wav": "audio_missing", "corrupt.wav": "audio_corrupt", "empty.wav": "audio_empty"}
    assert dataset.rejected == Counter(row.reason for row in rows)
    (gone,) = [row for row in rows if row.audio == "gone.wav"]
    assert str(tmp_path / "gone.wav") in gone.message
    kept_turns = sum(totals["turns"] for totals in dataset.totals.values())
    assert kept_turns == 3 + 20 and 3 + sum(of_mixed.values()) == len(bad)

    dataset = ShardedDataset(tmp_path / "out")
    samples = [dataset.read(i) for i in range(len(dataset))]
    kept = sorted(
        [(t.start, t.end) for t in sample.turns] for sample in samples if sample.recording == "local/mixed.wav"
    )
    assert kept == [[(0.0, 1.0)], [(1.2, 2.2)], [(5.0, 6.0)]]  # never joined over a rejected turn
    assert [len(sample.turns) for sample in samples if sample.recording != "local/mixed.wav"] == [4] * 5


def test_limits_divide_conversations_between_turns(calls, config, tmp_path):
    prepare(config(calls, **{"conversation.max_seconds": 2.5}))
    dataset = ShardedDataset(tmp_path / "out")
    assert list(dataset.column("n_turns")) == [2] * 10
    assert len(set(dataset.column("key"))) == 10


def test_nothing_usable_is_an_error_that_says_why(calls, config, tmp_path):
    rows = [{"audio": "gone.wav", "turns": [turn("a", 0, 1)]}]
    with pytest.raises(ValueError, match=r"no recording can be used \(audio_missing 1\); .*gone.wav: no such"):
        prepare(config(write_manifest(calls, rows)))
    assert not (tmp_path / "out").exists()


def test_validation_alone_has_nothing_to_fit_a_codec_to(calls, config, tmp_path):
    with pytest.raises(ValueError, match=r"no audio of split train.*codec\.path=FILE"):
        prepare(config(only_val(calls)))


def test_codec_that_can_be_fitted_to_no_file_names_the_reasons(calls, config, tmp_path):
    for n in range(5):
        samples = noise(5.0, RATE, n)
        samples[40_000] = np.nan
        soundfile.write(tmp_path / f"call{n}.wav", samples, RATE, subtype="FLOAT")
    rows = [json.loads(line) for line in calls.read_text().splitlines()]
    (tmp_path / "empty.wav").touch()
    write_manifest(calls, [*rows, {"audio": "empty.wav"}])
    with pytest.raises(ValueError, match=r"no audio of split train") as caught:
        prepare(config(calls))
    assert "(not_finite 4, audio_empty 1; the first: local/Call " in str(caught.value)
    assert "\n" not in str(caught.value)


def only_val(manifest: Path) -> Path:
    rows = [json.loads(line) | {"split": "val"} for line in manifest.read_text().splitlines()]
    return write_manifest(manifest, rows)


@pytest.mark.slow
def test_codec_of_another_dataset_can_be_used(calls, config, tmp_path):
    prepare(config(calls))
    first = ShardedDataset(tmp_path / "out")
    codec = CodecConfig(CodecKind.spectral, str(first.codec_file), num_codebooks=5, codebook_size=23)
    prepare(config(only_val(calls), codec=codec, output=tmp_path / "val"))
    second = ShardedDataset(tmp_path / "val")
    assert second.codec == first.codec
    codes = {(s.recording, s.codes.tobytes()) for s in map(first.read, range(5))}
    assert codes == {(s.recording, s.codes.tobytes()) for s in map(second.read, range(5))}


@pytest.mark.slow
def test_existing_output_is_replaced_only_when_asked(calls, config, tmp_path):
    prepare(config(calls))
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="already holds a prepared dataset; add overwrite=true"):
        prepare(config(calls))
    assert files(tmp_path / "out") == before
    prepare(config(calls, limit=3, overwrite=True, work=str(tmp_path / "work")))
    assert len(ShardedDataset(tmp_path / "out")) == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out", "out.work", "work"]


def test_folder_with_something_else_is_never_touched(calls, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not a prepared dataset"):
        prepare(config(calls, overwrite=True))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_two_runs_cannot_write_one_dataset_at_once(calls, config, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "theirs").touch()
    descriptor = os.open(tmp_path / "out.partial", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is preparing this dataset"):
        prepare(config(calls))
    assert (tmp_path / "out.partial" / "theirs").exists()
    os.close(descriptor)
    prepare(config(calls))  # and what a dead process left is cleared
    assert "theirs" not in files(tmp_path / "out")


def test_verify_names_what_is_broken(calls, config, tmp_path):
    prepare(config(calls))
    out = tmp_path / "out"
    assert verify(out) == []
    dataset = ShardedDataset(out)
    shard = out / dataset.info.shards[0].name
    data = shard.read_bytes()
    codes = data.index(dataset.read(1).codes.tobytes())
    shard.write_bytes(data[:codes] + b"\x17\x00" + data[codes + 2 :])
    (out / "codec.safetensors").write_bytes(bytes(len((out / "codec.safetensors").read_bytes())))
    problems = verify(out)
    assert len(problems) == 3
    assert problems[0].startswith(f"{out / 'codec.safetensors'}: content differs")
    assert problems[1] == f"{shard}: content differs from its hash in dataset.json"
    assert problems[2].startswith(f"{shard}, sample {dataset.key(1)}: code 23 is out of range")


def test_verify_compares_description_index_and_shards(calls, config, tmp_path):
    prepare(config(calls))
    file = tmp_path / "out" / "dataset.json"
    info = json.loads(file.read_text())
    info["totals"]["train"]["turns"] += 1
    file.write_text(json.dumps(info))
    (problem,) = verify(tmp_path / "out")
    assert "says 17 turns in split train, the index 16" in problem
    info["shards"][0]["samples"] -= 1
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"index\.parquet: .*dataset\.json says 4 samples, it has 5"):
        verify(tmp_path / "out")


def test_a_recording_without_any_word_is_listed_with_its_reason(config, tmp_path):
    """Nothing is annotated and nothing recognized: beside an annotated recording, and alone."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("welcome", "echo"):
        shutil.copy(MANIFEST.parent / f"{name}.flac", folder)
    (folder / "echo.txt").write_text("You have heard an echo.")
    options = {"transcribe.backend": TranscribeBackend.none, "diarize.backend": DiarizeBackend.single}
    dataset, _ = prepare(config(folder, **options))
    assert dataset.rejected == {"no_words": 1}
    (row,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (row["recording"], row["stage"], row["reason"]) == ("local/welcome.flac", "transcribe", "no_words")
    assert "it has no turns and no text" in row["message"]
    (folder / "echo.txt").unlink()
    (folder / "echo.flac").unlink()
    alone = config(folder, output=str(tmp_path / "none"), **options)
    alone.codec.path = str(tmp_path / "out" / "codec.safetensors")
    with pytest.raises(ValueError, match=r"nothing was kept \(no_words 1\).*it has no turns and no text"):
        prepare(alone)


def test_a_full_disk_is_one_line_whatever_is_written(calls, config, tmp_path):
    """As for a limit on the size of files: the same error of the storage, without a file system of its own."""
    cfg = config(calls)
    make_plan(cfg)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # the codec is larger; Python ignores the signal
    try:
        with pytest.raises(OSError, match=r"File too large.*codec\.safetensors"):
            run(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [file for file in (tmp_path / "out.work").iterdir() if "codec" in file.name]
    assert run(cfg).failures == []
