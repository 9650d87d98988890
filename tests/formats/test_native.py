"""Model directories: what goes in comes out bit for bit, damage is named, nothing is ever half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from csm.audio import load_audio, save_wav
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.data.dataset import ShardedDataset
from csm.files import atomic_directory, write_atomically
from csm.formats.export import export
from csm.formats.load import load_generator, load_model
from csm.formats.native import write_native
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import ByteTokenizer
from csm.training.build import train
from tests.conftest import compose_train
from tests.tiny import tiny_model


@pytest.fixture
def model_directory(tmp_path: Path, small_dataset: Path):
    model, dataset = tiny_model(), ShardedDataset(small_dataset)
    model.config.text_vocab_size, model.config.codebook_size = 258, dataset.codec.codebook_size
    model = CSM(model.config)
    (tmp_path / "model").mkdir()
    write_native(
        tmp_path / "model",
        weights=lazy(model.state_dict()),
        config=model.config,
        codec=CodecConfig(kind=CodecKind.spectral),
        codec_info=dataset.codec,
        fitted_codec=SpectralCodec.load(dataset.codec_file),
        tokenizer=ByteTokenizer(),
        training={"step": 3},
    )
    return tmp_path / "model", model


def test_round_trip_is_bit_exact(model_directory):
    path, model = model_directory
    loaded = load_model(path)
    assert loaded.config == model.config
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert load_model(path, dtype=torch.bfloat16).audio_head.dtype == torch.bfloat16


def test_existing_directory_is_kept(model_directory, tmp_path):
    path, _ = model_directory
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    checkpoint = open_checkpoint(path)
    with pytest.raises(FileExistsError, match="exists; choose another folder or pass --overwrite"):
        export(checkpoint, path)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before
    holiday = tmp_path / "photos"
    holiday.mkdir()
    (holiday / "beach.png").write_text("sand")
    with pytest.raises(FileExistsError, match="not a model directory and was left alone"):
        export(checkpoint, holiday, overwrite=True)
    assert (holiday / "beach.png").read_text() == "sand"


def damaged(path: Path, change) -> Path:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors")
    return path


def test_wrong_weights_name_the_first_tensor(model_directory):
    path, _ = model_directory
    original = (path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"tensor projection\.weight \(32, 48\) is missing"):
        load_model(damaged(path, lambda w: w.pop("projection.weight")))
    (path / "model.safetensors").write_bytes(original)
    with pytest.raises(ValueError, match=r"unexpected tensor surprise"):
        load_model(damaged(path, lambda w: w.update(surprise=torch.zeros(1))))
    (path / "model.safetensors").write_bytes(original)
    with pytest.raises(ValueError, match=r"audio_head has shape \(3, 32, 26\), the model expects \(4, 32, 26\)"):
        load_model(damaged(path, lambda w: w.update(audio_head=w["audio_head"][:3].clone())))
    (path / "model.safetensors").write_bytes(original[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short, first at tensor \S+ \("):
        load_model(path)


def test_bad_directories_say_what_they_lack(model_directory, tmp_path):
    path, _ = model_directory
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        load_model(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(ValueError, match="reads format_version 1"):
        load_model(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(path)


def test_another_codec_is_refused(model_directory):
    path, _ = model_directory
    config = json.loads((path / "config.json").read_text())
    config["codec"]["info"]["weights_hash"] = "0" * 16
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="different codecs"):
        load_generator(path)


def test_pickled_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"csm": Payload(), "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="holds Python objects, which could run code and are not loaded"):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_command_line_exports_and_speaks(tiny_overrides, tmp_path, csm, capsys):
    """A checkpoint alone is enough: dataset and run folder are gone when it is exported."""
    overrides = [*tiny_overrides, "trainer.max_steps=1", "trainer.val_every_steps=1", "lora.rank=2"]
    data = next(o for o in overrides if o.startswith("data.path=")).removeprefix("data.path=")
    shutil.copytree(data, tmp_path / "data")
    train(compose_train([*overrides, f"data.path={tmp_path / 'data'}"]))
    shutil.move(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "data")
    model, wav = tmp_path / "exported", tmp_path / "out.wav"

    assert csm("export", tmp_path / "alone.ckpt", "--out", model) == 0
    assert csm("export", tmp_path / "alone.ckpt", "--out", model) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert csm("export", tmp_path / "alone.ckpt", "--out", model, "--overwrite", "--dtype", "bf16") == 0
    speak = ("generate", model, "--text", "Hello.", "--seed", 3, "--max-audio-length-ms", 400)
    assert csm(*speak, "--out", wav) == 0
    assert wav.read_bytes()[:4] == b"RIFF"
    (tmp_path / "context.jsonl").write_text('{"speaker": 1, "text": "Hi.", "audio": "out.wav"}\n')
    assert csm(*speak, "--context", tmp_path / "context.jsonl", "--out", tmp_path / "second.wav") == 0
    (tmp_path / "context.jsonl").write_text('{"speaker": 1}\n')
    assert csm(*speak, "--context", tmp_path / "context.jsonl") == 2
    assert "line 1" in capsys.readouterr().err
    assert csm("export", tmp_path / "alone.ckpt", "--out", tmp_path / "adapter", "--format", "peft") == 0
    assert "PeftModel.from_pretrained" in capsys.readouterr().out  # not "csm generate", which reads no adapters
    assert csm("export", model, "--out", tmp_path / "none", "--format", "peft") == 2
    assert "has no LoRA adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--temperature", -1), "temperature=-1.0: must be"),
        (("--temperature", "nan"), "temperature=nan: must be"),
        (("--topk", -1), "topk=-1: must be"),
        (("--speaker", -1), "speaker=-1: speakers are numbered from 0"),
        (("--max-audio-length-ms", 79), "max_audio_length_ms=79.0: must be"),
        (("--max-audio-length-ms", "inf"), "max_audio_length_ms=inf: must be"),
        (("--out", "speech.mp3"), "speech.mp3: only WAV files are written"),
    ],
)
def test_generate_refuses_options_out_of_range_in_one_line(model_directory, csm, capsys, options, reason):
    path, _ = model_directory
    assert csm("generate", path, "--text", "Hi.", *options) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {reason}") and printed.err.count("\n") == 1 and printed.out == ""


def test_generate_with_topk_0_draws_from_all_codes(model_directory, csm, tmp_path):
    path, _ = model_directory
    options = ("--topk", 0, "--seed", 1, "--max-audio-length-ms", 160, "--out", tmp_path / "all.wav")
    assert csm("generate", path, "--text", "Hi.", *options) == 0
    assert load_audio(tmp_path / "all.wav", 24_000).shape == (2 * 1920,)


def test_generate_speaks_long_texts_in_fewer_codebooks(model_directory, csm, capsys, tmp_path):
    path, _ = model_directory
    text = "Hi.\nThis is a paragraph of its own."
    options = ("--long", "--num-codebooks", 2, "--no-guards", "--seed", 1, "--max-audio-length-ms", 160)
    assert csm("generate", path, "--text", text, *options, "--out", tmp_path / "long.wav") == 0
    assert load_audio(tmp_path / "long.wav", 24_000).shape == (2 * 2 * 1920,)
    assert capsys.readouterr().out.count("cut off") == 1


@pytest.mark.slow
def test_example_conversation(model_directory, tmp_path):
    """Two voices from recordings, two turns, the second with the first in its context."""
    path, _ = model_directory
    prompts = []
    for name, pitch in (("a", 150), ("b", 220)):
        save_wav(tmp_path / f"{name}.wav", torch.sin(torch.arange(4000) * 6.28 * pitch / 24_000) * 0.2, 24_000)
        prompts += [f"--prompt-{name}", str(tmp_path / f"{name}.wav"), "Hum."]
    script = Path(__file__).parents[2] / "examples" / "conversation.py"
    turns = ["--say", "Hey.", "--say", "Yes?", "--max-seconds", "0.4", "--out", str(tmp_path / "out.wav")]
    command = [sys.executable, str(script), str(path), *prompts, *turns]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "speaker 0: Hey." in done.stdout and "speaker 1: Yes?" in done.stdout
    assert load_audio(tmp_path / "out.wav", 24_000).numel() > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from csm.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_writer_leaves_the_old_directory(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)]).returncode == -9
    assert (target / "a").read_text() == "old"
    with atomic_directory(target) as folder:
        assert list(folder.iterdir()) == []  # nothing of the killed attempt
        (folder / "b").write_text("newer")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
