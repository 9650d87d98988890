"""The metrics of reports: what each is made of, and how utterances become one number.

A metric gives every utterance a numerator and a denominator (`terms`), or None where it has no part in the number.
Intervals, comparisons and controls work on these terms, so a new metric is one entry of `METRICS`; a suite chooses its
metrics by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from csm.evaluation.seedtts import Language, item_errors
from csm.evaluation.statistics import Pool
from csm.evaluation.text_norm import Rate
from csm.evaluation.utterances import Flag, System, Utterance

Terms = tuple[float, float]
Better = Literal["lower", "higher", "near 1", "near the recordings"]
Need = Literal["recognizer", "embedder", "phonemes", "prosody_distance", "nothing"]


@dataclass(frozen=True)
class Metric:
    """One number of a report.

    short:       title in the terminal
    needs:       the judge without which it cannot be computed, "nothing", or the name of a measure (eval.measures)
    nothing:     why there is no number when no utterance has terms
    undefined:   systems for which it means nothing, and why
    controlled:  whether the control (another prompt's text and voice) has it
    """

    name: str
    title: str
    detail: str
    short: str
    percent: bool
    better: Better
    needs: Need | str
    terms: Callable[[Utterance], Terms | None]
    nothing: str
    pool: Pool = "items"
    undefined: tuple[tuple[System, str], ...] = ()
    controlled: bool = False


def _all_errors(u: Utterance) -> Terms | None:
    return None if u.errors is None else (u.errors.errors, u.errors.reference_words)


def _errors_of_sound(u: Utterance) -> Terms | None:
    return None if u.flags else _all_errors(u)


def _rate(u: Utterance) -> Terms | None:
    return None if u.errors is None or u.errors.rate is None else (u.errors.rate, 1.0)


def _seedtts(language: Language) -> Callable[[Utterance], Terms | None]:
    def terms(u: Utterance) -> Terms | None:
        return None if u.hypothesis is None else (item_errors(u.text, u.hypothesis, language).wer, 1.0)

    return terms


def _failed(u: Utterance) -> Terms:
    return (float(bool(u.flags)), 1.0)


def _speed(u: Utterance) -> Terms | None:
    if not u.reference_seconds or not u.seconds or Flag.runaway in u.flags:  # whose length is the limit's
        return None
    return (u.reference_seconds / u.seconds, 1.0)


def _leaked(u: Utterance) -> Terms | None:
    return None if u.leaked is None or u.errors is None else (u.leaked, u.errors.reference_words)


def _nearest(u: Utterance) -> Terms | None:
    if u.cosine_earlier is None or u.cosine_other is None:
        return None
    return (float(u.cosine_earlier > u.cosine_other), 1.0)


def _pronounced(scorer: Literal["forced", "greedy"]) -> Callable[[Utterance], Terms | None]:
    def terms(u: Utterance) -> Terms | None:
        said = u.pronounced
        return None if said is None or not said.confirmed else (float(getattr(said, scorer) == said.expected), 1.0)

    return terms


def _prosody(name: str) -> Callable[[Utterance], Terms | None]:
    return lambda u: None if Flag.runaway in u.flags else _value(u.prosody.get(name))


def _value(value: float | None) -> Terms | None:
    return None if value is None else (value, 1.0)


_NO_TURN = "no recordings of the same turns to compare with, or nothing to hear"
_ITSELF = "the recording would be compared with itself"
_NO_WORDS = "no reference text holds a word after normalization"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "wer_corpus", "WER, corpus", "all errors / all words", "WER %, corpus", True, "lower", "recognizer",
            _all_errors, _NO_WORDS, controlled=True,
        ),
        Metric(
            "wer_mean", "WER, mean", "per utterance", "WER %, mean", True, "lower", "recognizer", _rate, _NO_WORDS,
            controlled=True,
        ),
        Metric(
            "wer_document", "WER, documents", "mean over documents", "WER %, documents", True, "lower", "recognizer",
            _all_errors, _NO_WORDS, pool="clusters", controlled=True,
        ),
        Metric(
            "wer_sound", "WER, sound", "corpus, without failures", "WER %, sound", True, "lower", "recognizer",
            _errors_of_sound, "every utterance failed",
        ),
        Metric(
            "wer_seedtts", "WER, seed-tts-eval", "its own arithmetic", "WER %, seed-tts", True, "lower", "recognizer",
            _seedtts("en"), _NO_WORDS, controlled=True,
        ),
        Metric(
            "cer_seedtts", "CER, seed-tts-eval", "its own arithmetic", "CER %, seed-tts", True, "lower", "recognizer",
            _seedtts("zh"), _NO_WORDS, controlled=True,
        ),
        Metric(
            "cosine_recording", "Speaker cosine", "with the recording of the same turn", "cosine, same turn", False,
            "higher", "embedder", lambda u: _value(u.cosine_recording), "no original recordings to compare with",
            undefined=((System.ground_truth, _ITSELF),),
        ),
        Metric(
            "cosine_earlier", "Speaker cosine", "with the speaker's earlier turns", "cosine, earlier", False, "higher",
            "embedder", lambda u: _value(u.cosine_earlier), "no earlier turn of the same speaker to compare with",
            controlled=True,
        ),
        Metric(
            "nearest", "Own voice", "nearer to the speaker's than to the other's", "own voice %", True, "higher",
            "embedder", _nearest, "no other speaker to compare with",
        ),
        Metric(
            "failed", "Failed", "utterances with a failure", "failed %", True, "lower", "nothing", _failed,
            "no utterances",
        ),
        Metric(
            "speed", "Speed", "length of the recording / of the speech", "speed", False, "near 1", "nothing", _speed,
            "no original recordings to compare with",
        ),
        Metric(
            "leakage", "Leakage", "inserted words of the turns before / all words", "leakage %", True, "lower",
            "recognizer", _leaked, "no prompt has turns before it",
        ),
        Metric(
            "pronounced", "Pronunciation", "expected variant, forced choice", "said right %", True, "higher",
            "phonemes", _pronounced("forced"), "no word is tested after a context in which it is heard",
        ),
        Metric(
            "pronounced_greedy", "Pronunciation", "expected variant, greedy", "greedy %", True, "higher", "phonemes",
            _pronounced("greedy"), "no word is tested after a context in which it is heard",
        ),
        Metric(
            "f0_distance", "Pitch", "semitones from the true turn's contour", "pitch distance", False, "lower",
            "prosody_distance", _prosody("f0_distance"), _NO_TURN, undefined=((System.ground_truth, _ITSELF),),
        ),
        Metric(
            "energy_distance", "Energy", "dB from the true turn's contour", "energy distance", False, "lower",
            "prosody_distance", _prosody("energy_distance"), _NO_TURN, undefined=((System.ground_truth, _ITSELF),),
        ),
        Metric(
            "rate_distance", "Rate", "octaves from the true turn's length", "rate distance", False, "lower",
            "prosody_distance", _prosody("rate_distance"), _NO_TURN, undefined=((System.ground_truth, _ITSELF),),
        ),
    )
}  # fmt: skip


def measure_metric(name: str) -> Metric:
    """The mean of a measure of eval.measures. Quality is better higher; other measures have no better side than the
    recordings' value."""
    better: Better = "higher" if "mos" in name else "near the recordings"
    return Metric(
        name, name.replace("_", " "), "mean", name, False, better, name, lambda u: _value(u.measures.get(name)),
        "no utterance was long enough",
    )  # fmt: skip


def metric(name: str, rate: Rate = "WER") -> Metric:
    """The metric of a name; a name that METRICS lacks is that of a measure.

    rate: what error rates are called in its titles; a CER counts characters instead of words
    """
    found = METRICS.get(name) or measure_metric(name)
    if rate == "WER":
        return found
    title, short = (text.replace("WER", rate) for text in (found.title, found.short))
    return replace(found, title=title, short=short, detail=found.detail.replace("words", "characters"))
