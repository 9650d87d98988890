"""Whisper through faster-whisper (CTranslate2), in batches of clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.backends.whisper import BUNDLED, MAX_CLIP_SECONDS, Recognized, bundled_model, in_batches
from data_prep.config import TranscribeConfig
from data_prep.records import MODEL_RATE, Word
from data_prep.stages.base import ModelUnavailable

_SLOT = int(MAX_CLIP_SECONDS * MODEL_RATE)


class FasterWhisper:
    """A loaded model; `transcribe.model` is a folder, a size ("large-v3-turbo") or a hub repository.

    Raises:
        FileNotFoundError: the weights are neither here nor can they be fetched.
        ModelUnavailable: the package is missing, or the weights do not load.
    """

    def __init__(self, cfg: TranscribeConfig) -> None:
        try:
            from faster_whisper import BatchedInferencePipeline, WhisperModel
        except ImportError as error:
            raise ModelUnavailable("faster-whisper is not installed: pip install faster-whisper") from error
        kind, _, index = cfg.device.partition(":")
        compute_type = cfg.compute_type
        if compute_type == "auto":
            compute_type = "float16" if kind == "cuda" else "int8"
        source = str(bundled_model()) if cfg.model == BUNDLED else cfg.model
        try:
            self._model = WhisperModel(source, device=kind, device_index=int(index or 0), compute_type=compute_type)
        except OSError as error:
            raise FileNotFoundError(
                f"transcribe.model={cfg.model} is no folder with a CTranslate2 Whisper model and the hub does not give "
                "it: download it and set transcribe.model to the folder, or to 'bundled' for a small English one"
            ) from error
        except RuntimeError as error:
            raise ModelUnavailable(f"transcribe.model={cfg.model} does not load: {error}") from error
        self._pipeline = BatchedInferencePipeline(self._model)
        self._cfg = cfg

    def languages(self, clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        if not self._model.model.is_multilingual:
            return [{"en": 1.0} for _ in clips]
        return [dict(self._model.detect_language(clip)[2]) for clip in clips]

    def transcribe(self, clips: Sequence[np.ndarray], lang: str) -> list[Recognized]:
        return in_batches(self._batch, clips, lang, self._cfg, self._model.model.is_multilingual)

    def _batch(self, clips: Sequence[np.ndarray], lang: str) -> list[Recognized]:
        """One batch: the clips lie in one signal, 30 s apart, as the library wants them, in memory that is bounded."""
        signal = np.zeros((len(clips), _SLOT), np.float32)
        for slot, clip in zip(signal, clips, strict=True):
            assert len(clip) <= _SLOT, "the library would leave out the rest"
            slot[: len(clip)] = clip
        spans = [
            {"start": i * MAX_CLIP_SECONDS, "end": i * MAX_CLIP_SECONDS + len(clip) / MODEL_RATE}
            for i, clip in enumerate(clips)
        ]
        # Temperature 0 alone: falling back to sampling would make results depend on a random state.
        segments, _ = self._pipeline.transcribe(
            signal.reshape(-1),
            language=lang,
            beam_size=self._cfg.beam_size,
            temperature=0.0,
            word_timestamps=True,
            clip_timestamps=spans,
            batch_size=len(clips),
        )
        found = [Recognized("", [], 0.0, 0.0) for _ in clips]
        for segment in segments:
            slot = round(segment.seek / (100 * MAX_CLIP_SECONDS))
            into, offset = found[slot], slot * MAX_CLIP_SECONDS
            into.text = (into.text + segment.text).strip()
            into.avg_logprob, into.no_speech_prob = float(segment.avg_logprob), float(segment.no_speech_prob)
            into.words += [
                Word(word.word.strip(), float(word.start) - offset, float(word.end) - offset, float(word.probability))
                for word in segment.words
            ]
        return found
