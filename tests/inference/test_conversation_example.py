"""The example of a conversation, run as its users run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm.audio import load_audio, save_wav
from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.formats.native import write_native
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import ByteTokenizer
from tests.tiny import K, tiny_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "conversation.py"


@pytest.mark.slow
def test_two_voices_speak_in_turn(tmp_path):
    noise = 0.1 * torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    codec, config = SpectralCodec.fit([noise], num_codebooks=K, codebook_size=16), tiny_config()
    config.text_vocab_size, config.codebook_size, config.initializer_std = 258, 16, 0.1
    torch.manual_seed(3)
    (tmp_path / "model").mkdir()
    spectral = CodecConfig(kind=CodecKind.spectral)
    weights = lazy(CSM(config).state_dict())
    write_native(tmp_path / "model", weights, config, spectral, codec.info, codec, ByteTokenizer(), training={})
    save_wav(tmp_path / "a.wav", noise[:24_000], codec.sample_rate)

    def example(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, EXAMPLE, tmp_path / "model", "--max-seconds", "0.8", "--device", "cpu", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = example("--prompt-a", "a.wav", "A.", "--say", "Hey.", "--say", "Yes?", "--out", "out.wav")
    assert done.returncode == 0, done.stderr
    *turns, file = done.stdout.splitlines()
    assert file == "out.wav" and [turn.split("   ")[0] for turn in turns] == ["speaker 0: Hey.", "speaker 1: Yes?"]
    seconds = sum(float(turn.split()[-2]) for turn in turns)
    assert len(load_audio(tmp_path / "out.wav", codec.sample_rate)) == pytest.approx(24_000 * seconds, abs=2400)

    missing = example("--prompt-a", "b.wav", "B.", "--say", "Hey.")
    assert missing.returncode == 2 and "b.wav" in missing.stderr and len(missing.stderr.splitlines()) == 1
