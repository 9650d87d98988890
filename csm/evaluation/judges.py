"""The judges of an evaluation, loaded by its options; one that cannot run here leaves its reason.

All of them are those of csm/judges: the recognizer and the speaker encoder are chosen by `eval.asr` and
`eval.speaker_model_kind`, the measures, which give numbers for single utterances, by `eval.measures`. The phoneme
recognizer (`eval.phonemes`) and the distance of prosody are loaded for suites with metrics that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from rich.console import Console

from csm.config import EvalConfig
from csm.judges.contours import ProsodyDistance
from csm.judges.hub import ModelUnavailable
from csm.judges.measures import MEASURES, AudioMeasure
from csm.judges.phonemes import PhonemeRecognizer, load_phonemes
from csm.judges.recognition import Recognizer
from csm.judges.speaker import SpeakerEmbedder, load_embedder
from csm.judges.whisper import load_recognizer


@dataclass
class Judges:
    """The judges that could be loaded, and the reasons of the others by the needs of metrics."""

    recognizer: Recognizer | None
    embedder: SpeakerEmbedder | None
    measures: dict[str, AudioMeasure]
    phonemes: PhonemeRecognizer | None = None
    prosody: ProsodyDistance | None = None
    unavailable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def none(cls, reason: str) -> Judges:
        """No judges, and why."""
        return cls(None, None, {}, unavailable=dict.fromkeys(_CHOSEN, reason))

    def describe(self) -> dict[str, Any]:
        """Every judge, or why it did not run."""
        recognizer, embedder = self.recognizer, self.embedder
        found = {
            "recognizer": recognizer.describe() if recognizer else {"not run": self.unavailable["recognizer"]},
            "speaker_embedder": embedder.describe() if embedder else {"not run": self.unavailable["embedder"]},
        }
        for name, judge in ((_PHONEMES, self.phonemes), (_PROSODY, self.prosody)):
            if judge is not None:
                found[name] = judge.describe()
            elif name in self.unavailable:
                found[name] = {"not run": self.unavailable[name]}
        lacking = {f"measure_{n}": {"not run": why} for n, why in self.unavailable.items() if n not in _NAMED}
        return found | {f"measure_{name}": judge.describe() for name, judge in self.measures.items()} | lacking

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that the measures add; of one that did not run, its own."""
        values = [value for judge in self.measures.values() for value in judge.values]
        return values + [name for name in self.unavailable if name not in _NAMED]


_CHOSEN = ("recognizer", "embedder")
_PHONEMES, _PROSODY = "phonemes", "prosody_distance"
_NAMED = (*_CHOSEN, _PHONEMES, _PROSODY)
_Judge = TypeVar("_Judge")


def load_judges(settings: EvalConfig, device: str, needs: Collection[str] = ()) -> Judges:
    """Loads every judge that the options name, and those that only some suites need.

    needs: of the suite's metrics

    Raises:
        ValueError: `eval.measures` names one that does not exist.
    """
    for name in settings.measures:
        if name not in MEASURES:
            raise ValueError(f"eval.measures: no measure is called {name!r}; known: {', '.join(sorted(MEASURES))}")
    unavailable: dict[str, str] = {}

    def attempt(need: str, load: Callable[[], _Judge]) -> _Judge | None:
        try:
            return load()
        except ModelUnavailable as error:
            Console(stderr=True).print(f"not run: {error}", style="yellow", markup=False, soft_wrap=True)
            unavailable[need] = str(error)
            return None

    recognizer = attempt(
        "recognizer", lambda: load_recognizer(settings.asr, settings.asr_model, settings.language, device)
    )
    embedder = attempt("embedder", lambda: load_embedder(settings.speaker_model_kind, settings.speaker_model, device))
    measures = {name: attempt(name, partial(MEASURES[name], device)) for name in settings.measures}
    loaded = {name: judge for name, judge in measures.items() if judge is not None}
    phonemes = prosody = None
    if _PHONEMES in needs:
        load = partial(load_phonemes, settings.phonemes, settings.phoneme_model, device)
        phonemes = attempt(_PHONEMES, load)
    if _PROSODY in needs:
        prosody = attempt(_PROSODY, ProsodyDistance)
    return Judges(recognizer, embedder, loaded, phonemes, prosody, unavailable)
