"""Rules of thumb for the turns of a dataset: their texts, voices and sound; see checks.py."""

from __future__ import annotations

import numpy as np

from data_prep.report.rules import Check, limit, share_check
from data_prep.report.texts import DISAGREES, ComparedTexts
from data_prep.report.turns import NARROW_BAND, TurnMeasures

MAX_NARROW = 0.20
MIN_MEDIAN_OVRL = 2.5
MAX_BOTH_SPEAK = 0.30
MAX_SAID_TWICE = 0.05
MIN_KNOWN_OVERLAP = 0.50
MAX_MARKUP = 0.01
MIN_LOGPROB = -0.6
"""Of tiny.en, right texts of noisy telephone speech have -0.45, and of Spanish or German taken for English -1."""
MAX_DISAGREEING = 0.02
LOW_SIMILARITY = 0.7
MAX_LOW_SIMILARITY = 0.05


def checks_of_turns(turns: TurnMeasures, texts: ComparedTexts | None) -> list[Check]:
    return [
        _both_speak(turns),
        _said_twice(turns),
        _overlap_known(turns),
        _markup(turns),
        _recognized(turns),
        _given_texts(turns, texts),
        _voices(turns),
        _narrow(turns),
        _quality(turns),
    ]


def _both_speak(turns: TurnMeasures) -> Check:
    rule = f"Both sides of a call speak at once for at most {limit(MAX_BOTH_SPEAK)} of its speech"
    if turns.both_speak is None:
        return Check(rule, "there are no calls with a channel for each speaker", None, "")
    return share_check(
        rule,
        turns.both_speak,
        lambda value: value > MAX_BOTH_SPEAK,
        "of the speech of calls is said by both sides at once",
        "Each channel seems to carry both voices, so that everything is said twice, once by the wrong speaker. Listen "
        "below; for stereo mixes, set two_channel='no' for the source.",
    )


def _said_twice(turns: TurnMeasures) -> Check:
    rule = f"Both sides of a call say the same words at once in at most {limit(MAX_SAID_TWICE)} of them"
    if turns.said_twice is None:
        return Check(rule, "no words were recognized in calls", None, "")
    return share_check(
        rule,
        turns.said_twice,
        lambda value: value > MAX_SAID_TWICE,
        "of the words recognized in calls are said by both sides within a second",
        "One channel seems to carry the other's voice or its echo, so that it is also the text of the wrong speaker. "
        "Listen below; for stereo mixes, set two_channel='no' for the source.",
    )


def _overlap_known(turns: TurnMeasures) -> Check:
    known = float(np.mean(~np.isnan(turns.columns["overlap"])))
    return share_check(
        f"Of at least {limit(MIN_KNOWN_OVERLAP)} of the turns it is known whether others talk over them",
        known,
        lambda value: value < MIN_KNOWN_OVERLAP,
        "of the turns have a known overlap",
        "diarize=cluster finds one speaker at a time: on mixed tracks, conversation.context_overlap and max_overlap do "
        "nothing, and no backchannel is found. Use diarize=pyannote or sortformer, or recordings with a channel for "
        "each speaker.",
    )


def _markup(turns: TurnMeasures) -> Check:
    return share_check(
        f"At most {limit(MAX_MARKUP)} of the texts hold markup",
        turns.with_markup,
        lambda value: value > MAX_MARKUP,
        "of the texts hold tags, entities or notes in brackets",
        "The model will learn to read them out, or to be silent there. Remove them from the texts given.",
    )


def _recognized(turns: TurnMeasures) -> Check:
    rule = f"The median log probability of each source's recognized texts is at least {MIN_LOGPROB:g}"
    if not turns.logprob_of_source:
        return Check(rule, "no text was recognized", None, "")
    source, lowest = min(turns.logprob_of_source.items(), key=lambda item: item[1])
    return Check(
        rule,
        f"The lowest is {lowest:.2f}, of source “{source}”",
        lowest < MIN_LOGPROB,
        "The recognizer is not sure of what it writes: another language than lang says (the language of a recording is "
        "taken as given, unless lang=null), or noise. Listen below; texts of the wrong language are nonsense.",
    )


def _given_texts(turns: TurnMeasures, texts: ComparedTexts | None) -> Check:
    rule = f"At most {limit(MAX_DISAGREEING)} of the given texts disagree with the sound"
    if texts is None or not len(texts.rates):
        none = turns.given_texts == 0
        return Check(rule, "no text is given" if none else "not compared (score.cer_model=bundled)", None, "")
    return share_check(
        rule,
        texts.disagreeing / len(texts.rates),
        lambda share: share > MAX_DISAGREEING,
        f"of {len(texts.rates):,} texts that were compared have a character error rate above {DISAGREES:g}; "
        f"{texts.disagreeing_kept:,} of them are in the dataset",
        "Texts of other turns, times that are shifted, or a recognizer that does not suit the recordings: see the "
        "worst below. strict.max_cer rejects such turns.",
    )


def _voices(turns: TurnMeasures) -> Check:
    similarity = turns.columns["speaker_similarity"]
    known = similarity[~np.isnan(similarity)]
    rule = f"At most {limit(MAX_LOW_SIMILARITY)} of the turns sound unlike their speaker's others"
    if not len(known):
        return Check(rule, "not measured (score.voices=true)", None, "")
    return share_check(
        rule,
        float(np.mean(known < LOW_SIMILARITY)),
        lambda share: share > MAX_LOW_SIMILARITY,
        f"of the turns have a voice whose similarity to their speaker's other turns is below {LOW_SIMILARITY:g}",
        "Speakers seem to be mixed up. See diarize, or the speakers given; strict.min_speaker_similarity rejects such "
        "turns.",
    )


def _narrow(turns: TurnMeasures) -> Check:
    return share_check(
        f"At most {limit(MAX_NARROW)} of the speech ends below {NARROW_BAND / 1000:g} kHz",
        turns.narrow_share,
        lambda value: value > MAX_NARROW,
        f"of the speech ends below {NARROW_BAND / 1000:g} kHz",
        "The model will learn to sound like a telephone. Prepare this speech as a dataset of its own with a smaller "
        "weight in the mixture, or set strict.min_bandwidth.",
    )


def _quality(turns: TurnMeasures) -> Check:
    known = turns.columns["ovrl"][~np.isnan(turns.columns["ovrl"])]
    rule = f"The median DNSMOS OVRL is at least {MIN_MEDIAN_OVRL}"
    if not len(known):
        return Check(rule, "not measured (score.dnsmos=true)", None, "")
    middle = float(np.median(known))
    warning = "Half of the turns are noisy or distorted, and so will be the model's speech. See strict.min_ovrl."
    return Check(rule, f"The median DNSMOS OVRL is {middle:.2f}", middle < MIN_MEDIAN_OVRL, warning)
