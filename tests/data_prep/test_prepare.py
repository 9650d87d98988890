import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_recordings import files, noise, turn, write_manifest

from csm.audio import load_audio, resample
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.data.dataset import ShardedDataset
from data_prep.cli import main
from data_prep.prepare import prepare
from data_prep.verify import verify

RATE = 16000
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(tmp_path) -> Path:
    """A manifest of five good recordings of four turns each."""
    rows = []
    for n in range(5):
        soundfile.write(tmp_path / f"call{n}.wav", noise(5.0, RATE, n), RATE)
        turns = [turn("ab"[i % 2], 0.1 + i * 1.2, 1.1 + i * 1.2) for i in range(4)]
        rows.append({"audio": f"call{n}.wav", "id": f"Call {n}", "split": "val" if n == 4 else "train", "turns": turns})
    return write_manifest(tmp_path / "calls.jsonl", rows)


def test_each_turn_is_encoded_on_its_own_and_stored_in_order(calls, config, tmp_path):
    prepare(config(calls))
    dataset = ShardedDataset(tmp_path / "out")
    codec = SpectralCodec.load(dataset.codec_file)
    assert codec.info == dataset.codec and len(dataset) == 5
    for sample in map(dataset.read, range(5)):
        audio = load_audio(dataset.audio_path(sample), RATE)
        assert [t.spk for t in sample.turns] == [0, 1, 0, 1]
        for stored in sample.turns:
            alone = audio[round(stored.start * RATE) : round(stored.end * RATE)]
            codes = codec.encode(resample(alone, RATE, 24000)[None, None])[0].numpy()
            assert np.array_equal(sample.codes[:, stored.f0 : stored.f0 + stored.nf], codes)


def test_same_input_gives_identical_shards_and_index(calls, config, tmp_path):
    prepare(config(calls, shard_mb=0.002))
    prepare(config(calls, shard_mb=0.002, output=str(tmp_path / "again")))
    first, again = files(tmp_path / "out"), files(tmp_path / "again")
    assert first.keys() == again.keys() and len([name for name in first if name.endswith(".tar")]) > 2
    for name in first.keys() - {"codec.safetensors", "dataset.json"}:
        assert first[name] == again[name], name
    assert ShardedDataset(tmp_path / "out").info.fingerprint == ShardedDataset(tmp_path / "again").info.fingerprint


def test_order_in_shards_is_shuffled_by_the_seed(calls, config, tmp_path):
    orders = []
    for seed in (1, 2, 3):
        prepare(config(calls, seed=seed, overwrite=True, max_turns=1))
        orders.append(list(ShardedDataset(tmp_path / "out").recordings))
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

    prepared = prepare(config(calls, max_turn_seconds=2.0))
    assert prepared.rejected == {
        "audio_missing": 2,
        "audio_corrupt": 2,
        "times_outside_audio": 2,
        "too_short": 1,
        "too_long": 1,
        "empty_text": 1,
        "bad_times": 1,
        "channel_missing": 1,
    }
    assert prepared.turns_in == 10 + 4 + 20 == prepared.turns_kept + sum(prepared.rejected.values())
    assert prepared.dataset.rejected == prepared.rejected
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    reasons = {(row["recording"], row["turn"]): row["reason"] for row in rows}
    assert reasons == {
        ("mixed.wav", 9): "times_outside_audio",
        ("mixed.wav", 1): "too_short",
        ("mixed.wav", 3): "too_long",
        ("mixed.wav", 4): "empty_text",
        ("mixed.wav", 5): "bad_times",
        ("mixed.wav", 6): "channel_missing",
        ("mixed.wav", 8): "times_outside_audio",
        ("gone.wav", None): "audio_missing",
        ("corrupt.wav", None): "audio_corrupt",
        ("empty.wav", None): "audio_corrupt",
    }
    (gone,) = [row for row in rows if row["recording"] == "gone.wav"]
    assert gone["turns"] == 2 and str(tmp_path / "gone.wav") in gone["message"]

    dataset = ShardedDataset(tmp_path / "out")
    samples = [dataset.read(i) for i in range(len(dataset))]
    kept = sorted([(t.start, t.end) for t in sample.turns] for sample in samples if sample.recording == "mixed.wav")
    assert kept == [[(0.0, 1.0)], [(1.2, 2.2)], [(5.0, 6.0)]]  # never joined over a rejected turn
    assert [len(sample.turns) for sample in samples if sample.recording != "mixed.wav"] == [4] * 5


def test_limits_divide_conversations_between_turns(calls, config, tmp_path):
    prepare(config(calls, max_conversation_seconds=2.5))
    dataset = ShardedDataset(tmp_path / "out")
    assert list(dataset.n_turns) == [2] * 10
    assert len(set(dataset.keys)) == 10


def test_nothing_usable_is_an_error_that_says_why(calls, config, tmp_path):
    rows = [{"audio": "gone.wav", "turns": [turn("a", 0, 1)]}]
    with pytest.raises(ValueError, match=r"no turn could be kept \(audio_missing 1\); the first: .*gone.wav: no such"):
        prepare(config(write_manifest(calls, rows)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_validation_alone_has_nothing_to_fit_a_codec_to(calls, config, tmp_path):
    with pytest.raises(ValueError, match=r"no recording is in split train.*codec\.path=FILE"):
        prepare(config(only_val(calls)))


def only_val(manifest: Path) -> Path:
    rows = [json.loads(line) | {"split": "val"} for line in manifest.read_text().splitlines()]
    return write_manifest(manifest, rows)


def test_codec_of_another_dataset_can_be_used(calls, config, tmp_path):
    prepare(config(calls))
    first = ShardedDataset(tmp_path / "out")
    codec = CodecConfig(CodecKind.spectral, str(first.codec_file), num_codebooks=5, codebook_size=23)
    prepare(config(only_val(calls), codec=codec, output=str(tmp_path / "val")))
    second = ShardedDataset(tmp_path / "val")
    assert second.codec == first.codec
    codes = {(s.recording, s.codes.tobytes()) for s in map(first.read, range(5))}
    assert codes == {(s.recording, s.codes.tobytes()) for s in map(second.read, range(5))}


def test_existing_output_is_replaced_only_when_asked(calls, config, tmp_path):
    prepare(config(calls))
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="already holds a prepared dataset; add overwrite=true"):
        prepare(config(calls))
    assert files(tmp_path / "out") == before
    prepare(config(calls, limit=3, overwrite=True))
    assert len(ShardedDataset(tmp_path / "out")) == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


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
    assert problems[2].startswith(f"{shard}, sample {dataset.keys[1]}: code 23 is out of range")


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


@pytest.fixture
def program(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`program(argument, ...)`: runs the command line in this process -> exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data_prep", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def test_mistakes_on_the_command_line_are_one_line_and_exit_2(calls, config, tmp_path, program):
    prepare(config(calls))
    out = tmp_path / "out"
    mistakes = {
        (
            f"input={calls}",
            f"output={out}",
        ): f"{out}: already holds a prepared dataset; add overwrite=true to replace it",
        (f"output={out}",): "input is not set; give input=PATH",
        ("verify", f"output={tmp_path}"): f"{tmp_path}: not a prepared dataset",
        ("prepair", f"input={calls}"): "unknown command 'prepair'; known are prepare, demo, verify, lengths",
        (f"input={tmp_path / 'x'}", f"output={tmp_path / 'y'}"): f"{tmp_path / 'x'}: no such input",
        (f"input={calls}", f"output={tmp_path / 'y'}", "max_turns=0"): "max_turns=0 must be greater than 0",
    }
    for arguments, message in mistakes.items():
        code, _, stderr = program(*arguments)
        assert code == 2 and stderr.startswith(f"error: {message}") and stderr.count("\n") == 1


def test_unknown_or_mistyped_option_is_named_before_any_work(calls, tmp_path, program):
    for argument, name in (("max_turn_second=3", "max_turn_second"), ("max_turns=many", "max_turns")):
        code, _, stderr = program(f"input={calls}", f"output={tmp_path / 'out'}", argument)
        assert code == 2 and name in stderr and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_verify_exits_1_for_a_broken_dataset(calls, config, tmp_path, program):
    prepare(config(calls))
    assert program("verify", f"output={tmp_path / 'out'}")[:2] == (0, f"{tmp_path / 'out'}: whole\n")
    file = tmp_path / "out" / "codec.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    code, _, stderr = program("verify", f"output={tmp_path / 'out'}")
    assert code == 1 and f"{file}: content differs" in stderr


def test_module_runs_as_a_program(calls, tmp_path):
    command = [sys.executable, "-m", "data_prep", f"input={calls}", f"output={tmp_path / 'out'}"]
    command += ["codec=spectral", "codec.num_codebooks=5", "codec.codebook_size=23"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "20 of 20 turns kept" in done.stdout and len(ShardedDataset(tmp_path / "out")) == 5
