"""`csm generate --voice`: a saved voice is its reference turns as context, on the command line as in Python."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csm.audio import load_audio, save_wav
from csm.cli import main
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.formats.load import load_generator
from csm.formats.native import write_native
from csm.formats.tensors import lazy
from csm.inference.segments import Segment
from csm.inference.voice import Voice
from csm.model.csm import CSM
from csm.text import ByteTokenizer
from tests.codec.conftest import make_babble
from tests.tiny import CODEBOOK_SIZE, K, tiny_config

SPOKEN = ["--text", "Hello you.", "--seed", "4", "--max-audio-length-ms", "800", "--watermark", "none"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Weights so large that every turn of the context matters to every code."""
    folder = tmp_path_factory.mktemp("model")
    config = replace(tiny_config(), text_vocab_size=ByteTokenizer.vocab_size, max_seq_len=256)
    torch.manual_seed(0)
    csm = CSM(config)
    with torch.no_grad():
        for parameter in csm.parameters():
            parameter.normal_(std=0.3) if parameter.ndim >= 2 else parameter.uniform_(0.5, 1.5)
    codec = SpectralCodec.fit([make_babble(48_000, seed=1)], num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    kind = CodecConfig(kind=CodecKind.spectral, num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    write_native(folder, lazy(csm.state_dict()), config, kind, codec.info, codec, ByteTokenizer(), {})
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, model) -> Path:
    """A working folder with recordings of two speakers, a voice made of the first, and dialogue.jsonl of the second."""
    monkeypatch.chdir(tmp_path)
    for name, speaker, texts in (("turns", 0, ["Good day.", "Été 日本"]), ("dialogue", 1, ["How are you?"])):
        lines = []
        for number, text in enumerate(texts):
            save_wav(tmp_path / f"{name}-{number}.wav", make_babble(10_000 + 3_000 * number, seed=5 + number), 24_000)
            lines.append(json.dumps({"speaker": speaker, "text": text, "audio": f"{name}-{number}.wav"}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    run("voice", "make", "anna", "--model", str(model), "--turns", "turns.jsonl")
    return tmp_path


def run(*words: str) -> None:
    sys.argv = ["csm", *words]
    main()


def spoken(model: Path, *words: str) -> torch.Tensor:
    """Samples of `csm generate`, as 16-bit integers."""
    run("generate", str(model), *SPOKEN, *words)
    return (load_audio(Path("out.wav"), 24_000) * 32768).round()


def test_a_voice_gives_the_samples_of_its_turns_as_context(here, model, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    by_name, by_context = spoken(model, "--voice", "anna"), spoken(model, "--context", "turns.jsonl")
    assert len(by_name) > 1920 and torch.equal(by_name, by_context)
    assert torch.equal(by_name, spoken(model, "--voice", "voices/anna.safetensors"))
    plain = spoken(model)
    assert len(plain) != len(by_name) or not torch.equal(plain, by_name)

    # The voice speaks as --speaker, before the other turns.
    generator, voice = load_generator(model, watermark="none"), Voice.load("voices/anna.safetensors")
    recording = load_audio(Path("dialogue-0.wav"), 24_000)
    context = [
        *(Segment(3, text, codes=codes) for text, codes in zip(voice.texts, voice.codes, strict=True)),
        Segment(1, "How are you?", recording),
    ]
    right = generator.generate("Hello you.", 3, context, max_audio_length_ms=800, seed=4)
    heard = spoken(model, "--voice", "anna", "--speaker", "3", "--context", "dialogue.jsonl")
    assert heard.shape == right.shape and (heard / 32768 - right).abs().max() < 1e-4


def test_a_voice_that_cannot_be_used_is_one_line(here, model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    voice = Voice.load("voices/anna.safetensors")
    replace(voice, codec=replace(voice.codec, weights_hash="1")).save(Path("voices/other.safetensors"))
    long = [torch.ones(K, 300, dtype=torch.int64)]
    replace(voice, texts=["Long."], codes=long).save(Path("voices/long.safetensors"))
    Path("voices/bad.safetensors").write_bytes(b"x")
    for name, reason in [
        ("nobody", "voice voices/nobody.safetensors does not exist; `csm voice make` makes one"),
        ("other/nobody", "voice other/nobody does not exist"),
        ("bad", "voices/bad.safetensors: cannot be read as a voice"),
        ("other", "voice anna and the model: made with different codecs"),
        ("long", "positions"),
    ]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run("generate", str(model), *SPOKEN, "--voice", name)
        printed = capsys.readouterr().err
        assert (
            ended.value.code == 2 and printed.count("\n") == 1 and printed.startswith("error: ") and reason in printed
        )
    assert not Path("out.wav").exists()
