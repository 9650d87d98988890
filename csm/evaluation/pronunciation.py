"""How tested words were said: the stage that asks the phoneme recognizer, and results of the suites that need it.

Both scorers of csm/evaluation/sets/scorers.py judge every take. Where people have read the sentences, the threshold of
the forced choice is set for each word by their speech: recognizers lean towards one variant of some words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from csm.evaluation.sets.items import Target
from csm.evaluation.sets.scorers import calibrate, choose, forced_advantage, greedy_choice, place
from csm.evaluation.sets.summary import Accuracy, Answer, accuracy, consistency
from csm.evaluation.sets.variants import CONSISTENCY, in_symbols
from csm.evaluation.stages import Take, progress, recorded, speech_of, voice_key
from csm.evaluation.store import StageLog, Store, key_of
from csm.evaluation.tables import ScoreTable
from csm.evaluation.utterances import Pronounced, System, Utterance
from csm.judges.phonemes import PhonemeRecognizer

MIN_MARGIN = 0.5
"""Nats by which a context's variant must be heard; a context below it tests nothing."""


def pronounce(
    takes: Sequence[Take], speech: StageLog, judge: PhonemeRecognizer, store: Store, sample_rate: int
) -> StageLog:
    """Asks the recognizer about the tested word of every take, and of the context that a take should follow."""
    log = store.log(f"phonemes-{key_of(**judge.describe())}")
    for take in progress([t for t in takes if t.key not in log], "phonemes"):
        prompt = take.prompt
        assert prompt.target is not None, "the suites that load the judge test a word"
        if prompt.context and (key := voice_key(prompt.own_context)) not in log:
            audio, rate = recorded(prompt.own_context, sample_rate)
            log.add(key, **_hear(audio, rate, prompt.context[-1].text, prompt.target, judge))
        if take.key not in log:
            said = speech_of(take.key, speech, store, sample_rate)
            log.add(take.key, **_hear(said, sample_rate, prompt.text, prompt.target, judge))
    return log


def _hear(
    audio: Tensor | None, sample_rate: int, text: str, target: Target, judge: PhonemeRecognizer
) -> dict[str, Any]:
    """greedy: variant; advantage: nats of the first variant over the second. None: undecided."""
    if audio is None:
        return {"greedy": None, "advantage": None}
    log_probs, where = judge.log_probs(audio, sample_rate).numpy(), place(text, target.word)
    realizations = in_symbols(target.variants, judge.symbols, judge.spell)
    best = [judge.vocabulary[number] for number, _ in groupby(log_probs.argmax(axis=-1).tolist())]
    phones = [symbol for symbol in best if symbol in judge.symbols]
    advantage = forced_advantage(log_probs, judge.vocabulary, judge.blank, realizations, where)
    return {
        "greedy": greedy_choice(phones, realizations, where).variant,
        "advantage": float(advantage) if np.isfinite(advantage) else None,
    }


def thresholds(takes: Sequence[Take], log: StageLog) -> dict[str, float]:
    """Offset of the forced choice by word, from the recordings; 0 for words of which they lack a variant."""
    known: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for take in takes:
        target, advantage = take.prompt.target, log[take.key]["advantage"]
        if take.system is System.ground_truth and target is not None and advantage is not None:
            known[target.word].append((advantage, target.variant == next(iter(target.variants))))
    both = {word: pairs for word, pairs in known.items() if len({first for _, first in pairs}) == 2}
    return {word: calibrate([a for a, _ in pairs], [first for _, first in pairs]) for word, pairs in both.items()}


def pronounced(take: Take, log: StageLog, offsets: dict[str, float]) -> Pronounced:
    """The take's word as both scorers heard it."""
    prompt = take.prompt
    assert prompt.target is not None, "see `pronounce`"
    word, (first, second), heard = prompt.target.word, prompt.target.variants, log[take.key]

    def forced(advantage: float | None) -> tuple[str | None, float]:
        choice = choose(float("nan") if advantage is None else advantage, first, second, offsets.get(word, 0.0))
        return choice.variant, choice.margin

    variant, margin = forced(heard["advantage"])
    confirmed = True
    if prompt.context:
        before, sure = forced(log[voice_key(prompt.own_context)]["advantage"])
        confirmed = before == prompt.target.variant and sure >= MIN_MARGIN
    return Pronounced(word, prompt.target.variant, heard["greedy"], variant, margin, confirmed)


# --------------------------------------------------------------------------------------------------------- results

SCORERS = {"forced": "forced choice", "greedy": "greedy"}


def pronunciation_results(utterances: Sequence[Utterance], bootstrap_samples: int) -> dict[str, Any] | None:
    """By system and scorer, as plain values; None where no word is tested.

    `low` and `high` are Wilson's interval, for other sentences with these words; `over_words` is for other words.
    """
    found: dict[str, Any] = {}
    for system in (System.ground_truth, System.model):
        mine = [u.pronounced for u in utterances if u.system is system and u.pronounced is not None]
        kept = [p for p in mine if p.confirmed]
        if not kept:
            continue
        found[system.name] = {"items": len(kept), "unconfirmed_contexts": len(mine) - len(kept)}
        for scorer in SCORERS:
            answers = [Answer(p.word, p.expected, getattr(p, scorer)) for p in kept]
            found[system.name][scorer] = _scores(answers, bootstrap_samples)
    return found or None


def _scores(answers: Sequence[Answer], bootstrap_samples: int) -> dict[str, Any]:
    if answers[0].word not in CONSISTENCY:
        return _accuracy(accuracy(answers, bootstrap_samples))
    result = consistency(answers, bootstrap_samples)
    return _accuracy(result.accuracy) | {"majority": result.majority, "kappa": result.kappa}


def _accuracy(found: Accuracy) -> dict[str, Any]:
    words = asdict(found.over_words)
    return {
        "value": words["value"],
        "low": found.low,
        "high": found.high,
        "over_words": words,
        "undecided": found.undecided,
        "by_word": {word: list(counts) for word, counts in found.by_word.items()},
    }


def pronunciation_tables(results: dict[str, Any]) -> list[ScoreTable]:
    """Everything of `pronunciation_results`, for the report."""
    columns = [(f"{System[name].value}, {SCORERS[s]}", scores[s]) for name, scores in results.items() for s in SCORERS]
    rows = [
        ("in the expected variant, %", [_percent(scores) for _, scores in columns]),
        ("undecided", [str(scores["undecided"]) for _, scores in columns]),
    ]
    if "kappa" in columns[0][1]:
        rows.append(("in the word's most frequent variant, %", [f"{100 * s['majority']:.1f}" for _, s in columns]))
        rows.append(("kappa of context and answer", [f"{scores['kappa']:.3f}" for _, scores in columns]))
        unconfirmed = [str(scores["unconfirmed_contexts"]) for scores in results.values() for _ in SCORERS]
        rows.append(("left out: variant not heard in the context", unconfirmed))
    titles = [title for title, _ in columns]
    words = dict.fromkeys(word for _, scores in columns for word in scores["by_word"])
    by_word = [(word, ["/".join(map(str, scores["by_word"].get(word, []))) for _, scores in columns]) for word in words]
    return [ScoreTable("Pronunciation", titles, rows), ScoreTable("By word, right of all", titles, by_word)]


def _percent(scores: dict[str, Any]) -> str:
    return f"{100 * scores['value']:.1f} [{100 * scores['low']:.1f}, {100 * scores['high']:.1f}]"
