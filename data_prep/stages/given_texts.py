"""Given texts against the sound: the character error rate of what a recognizer hears.

The rate is that of letters, marks and digits, after the normalization of evaluation reports, without spaces: "can not"
and "cannot" agree. A recognizer errs too, and outside English numbers may be written otherwise than in the text, so
that a rate up to 0.3 says little; texts of other turns have rates of 0.5 and more, mostly of 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import jiwer

from csm.evaluation.text_norm import load_normalizer
from csm.judges.hub import ModelUnavailable
from csm.judges.recognition import Recognizer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import TranscribeConfig
from data_prep.records import DraftTurn, Span
from data_prep.speech.text_checks import without_markup
from data_prep.stages.transcribe import CLIPS_AT_ONCE, clips_of, load_recognizer, quietest_of, read_clip

OPTION = "score.cer_model"

MIN_CHARACTERS = 8
"""A shorter text has no rate: of "Mhm." or "Yes.", recognizers write something else that is as right."""


class GivenTexts:
    """Compares given texts with what the recognizer of `cfg` hears; it is loaded when the first text is compared."""

    def __init__(self, cfg: TranscribeConfig) -> None:
        self._cfg = cfg
        self._unknown: set[str] = set()  # languages that the model does not know

    def compare(self, audio: RecordingAudio, turns: Sequence[DraftTurn]) -> dict[int, tuple[str, float]]:
        """Number of a turn -> the text heard, and the character error rate of the given text against it.

        Turns whose text was recognized or is shorter than `MIN_CHARACTERS`, and turns in an unknown language or in one
        that the model does not know, are left out.
        """
        found: dict[int, tuple[str, float]] = {}
        for lang in sorted({turn.lang for turn in turns if turn.lang is not None} - self._unknown):
            of_lang = [turn for turn in turns if turn.lang == lang and turn.avg_logprob is None]
            said = {turn.number: _characters(turn.text, lang) for turn in of_lang}
            wanted = [turn for turn in of_lang if len(said[turn.number]) >= MIN_CHARACTERS]
            heard = self._heard(audio, wanted, lang)
            for number, text in heard.items():
                rate = jiwer.process_characters(said[number], _characters(text, lang)).cer
                found[number] = (text, round(rate, 4))
        return found

    def _heard(self, audio: RecordingAudio, turns: Sequence[DraftTurn], lang: str) -> dict[int, str]:
        """Number of a turn -> the text heard in it; empty if the model does not know the language."""
        limit = self._cfg.max_clip_seconds
        clips = [
            (turn, clip)
            for turn in turns
            for clip in clips_of([Span(turn.start, turn.end)], limit, quietest_of(audio, turn.channel))
        ]
        heard: dict[int, list[str]] = {turn.number: [] for turn in turns}
        for first in range(0, len(clips), CLIPS_AT_ONCE):
            some = clips[first : first + CLIPS_AT_ONCE]
            samples = [read_clip(audio, turn.channel, clip) for turn, clip in some]
            model = self._model
            try:
                recognized = model.recognize(samples, lang)
            except ModelUnavailable:
                self._unknown.add(lang)
                return {}
            for (turn, _), result in zip(some, recognized, strict=True):
                heard[turn.number].append(result.text)
        return {number: " ".join(texts).strip() for number, texts in heard.items()}

    @cached_property
    def _model(self) -> Recognizer:
        return load_recognizer(self._cfg, OPTION)


def _characters(text: str, lang: str) -> str:
    return load_normalizer(lang)(without_markup(text)).replace(" ", "")
