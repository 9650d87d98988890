"""Measures of the audio samples of a validation, and warnings where they or predicted ends get worse over a training.

A loss says how well frames are predicted, not how well turns are spoken: these are about turns that the model speaks.
Without samples, `val/eos_recall` tells of ends: the share of end-of-speech frames that the model predicts.
A turn is ended well if the model ends it within a third of the recording's length, and has run away if a limit or a
guard had to end it (csm/inference/guards.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from csm.config import TrainerConfig

METRICS = ("rate", "chars_per_second", "ended", "end_accuracy", "runaway", "empty", "similarity", "wer")
"""Names below `samples/`; the last two only with their judges."""

_WELL_ENDED = (2 / 3, 4 / 3)  # of the recording's length
STEADY = (1 / 1.3, 1.3)
"""Speaking rates that are no drift."""
_LOST_ENDS = 0.25  # share of samples, or of end-of-speech frames
_REMEDY = "loss.eos_weight above 1 weighs ends more"


class SampleJudge(Protocol):
    """Scores one sample against its reference."""

    def scores(self, audio: Tensor, sample_rate: int, text: str, reference: Tensor) -> dict[str, Any]:
        """audio, reference: float32 [N], `reference` after the codec; audio may be empty. Values for the record."""
        ...


def sample_metrics(records: Sequence[dict[str, Any]], frame_rate: float) -> dict[str, float]:
    """Metrics of the samples of one step, from their records in samples.jsonl; NaN where no sample tells.

    rate:             speaking rate relative to the recordings', over samples that the model ended: 2 is twice as fast
    chars_per_second: the same in characters of text
    ended, end_accuracy, runaway, empty: shares of the samples
    similarity:       mean cosine of speaker embeddings with the reference after the codec
    wer:              word errors / words of all texts
    """
    ended = [record for record in records if record["finish_reason"] == "stop" and record["frames"]]
    frames = sum(record["frames"] for record in ended)
    low, high = _WELL_ENDED
    well = sum(low <= record["frames"] / record["reference_frames"] <= high for record in ended)
    empty = sum(not record["frames"] for record in records)
    metrics = {
        "rate": _ratio(sum(record["reference_frames"] for record in ended), frames),
        "chars_per_second": _ratio(frame_rate * sum(len(record["text"]) for record in ended), frames),
        "ended": _ratio(len(ended), len(records)),
        "end_accuracy": _ratio(well, len(records)),
        "runaway": _ratio(len(records) - len(ended) - empty, len(records)),
        "empty": _ratio(empty, len(records)),
    }
    similar = [record["similarity"] for record in records if record.get("similarity") is not None]
    if any("similarity" in record for record in records):
        metrics["similarity"] = _ratio(sum(similar), len(similar))
    if any("word_errors" in record for record in records):
        words = sum(record["words"] for record in records)
        metrics["wer"] = _ratio(sum(record["word_errors"] for record in records), words)
    return {f"samples/{name}": value for name, value in metrics.items()}


def drift(earlier: Sequence[tuple[int, dict[str, float]]], now: dict[str, float]) -> list[str]:
    """Sentences where rate or ends are worse now than they were; earlier: (step, metrics) of this run."""
    found = []
    steady = [(step, past["samples/rate"]) for step, past in earlier if _is_steady(past["samples/rate"])]
    rate = now["samples/rate"]
    if steady and not math.isnan(rate) and not _is_steady(rate):
        step, before = steady[-1]
        found.append(
            f"speech has become {'faster' if rate > before else 'slower'}: {rate:.2f} times the rate of the "
            f"recordings, {before:.2f} at step {step}; shifted labels do that, and silence or cut ends in the data"
        )
    step, before = max(
        ((step, past["samples/ended"]) for step, past in earlier), key=lambda pair: pair[1], default=(0, 0)
    )
    ended = now["samples/ended"]
    if before - ended >= _LOST_ENDS:
        found.append(
            f"the model ends {ended:.0%} of the samples, {before:.0%} at step {step} "
            f"({now['samples/runaway']:.0%} run away, {now['samples/empty']:.0%} are empty); "
            f"{_REMEDY}"
        )
    return found


@dataclass
class EndRecall:
    """The best `val/eos_recall` of a run so far, and its step."""

    best: float = 0.0
    step: int = 0

    def see(self, step: int, recall: float) -> str | None:
        """Takes the value of a validation, NaN without any turn; returns a sentence if it is far below the best."""
        if recall > self.best:
            self.best, self.step = recall, step
        if self.best - recall < _LOST_ENDS or math.isnan(recall):
            return None
        return f"the model predicts {recall:.0%} of the ends of speech, {self.best:.0%} at step {self.step}; {_REMEDY}"


def _is_steady(rate: float) -> bool:
    return STEADY[0] <= rate <= STEADY[1]


def _ratio(value: float, count: float) -> float:
    return value / count if count else math.nan


class WordErrorJudge:
    """Counts word errors of samples with faster-whisper."""

    def __init__(self, model: str, language: str, device: str) -> None:
        # Recognizer and normalizer are slow to import, and packages of an extra.
        from csm.evaluation.text_norm import load_normalizer
        from csm.judges.faster_whisper import FasterWhisper

        self._recognizer = FasterWhisper(model, device, language=language, option="trainer.sample_asr")
        self._normalizer = load_normalizer(language)

    def scores(self, audio: Tensor, sample_rate: int, text: str, reference: Tensor) -> dict[str, Any]:
        from csm.evaluation.wer import align_words, count_errors

        heard = self._recognizer.transcribe(audio, sample_rate) if len(audio) else ""
        errors = count_errors(align_words(self._normalizer(text), self._normalizer(heard)))
        return {"heard": heard, "words": errors.reference_words, "word_errors": errors.errors}


class SimilarityJudge:
    """Compares the voices of samples and their references."""

    def __init__(self, options: TrainerConfig, device: str) -> None:
        from csm.judges.speaker import load_embedder

        assert options.sample_similarity is not None
        self._embedder = load_embedder(options.sample_similarity, None, device)

    def scores(self, audio: Tensor, sample_rate: int, text: str, reference: Tensor) -> dict[str, Any]:
        from csm.judges.speaker import cosine

        voices = [self._embedder.embed(each, sample_rate) if len(each) else None for each in (audio, reference)]
        same = None if voices[0] is None or voices[1] is None else cosine(voices[0], voices[1])
        return {"similarity": same}


def load_judges(options: TrainerConfig, device: str) -> list[SampleJudge]:
    """The judges that are asked for. Raises ValueError with the remedy if a package or weights are missing."""
    judges: list[SampleJudge] = []
    if options.sample_asr is not None:
        judges.append(WordErrorJudge(options.sample_asr, options.sample_language, device))
    if options.sample_similarity is not None:
        judges.append(SimilarityJudge(options, device))
    return judges
