"""Utterances with everything known about them, put together from the logs of the stages. Nothing here is slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from csm.evaluation.failures import find_failures
from csm.evaluation.judges import Judges
from csm.evaluation.prompts import AudioSpan, EvalPrompt
from csm.evaluation.pronunciation import pronounced, thresholds
from csm.evaluation.stages import Take, pair_key, voice_key
from csm.evaluation.store import StageLog, Store, key_of
from csm.evaluation.text_norm import TextNormalizer
from csm.evaluation.utterances import System, Utterance
from csm.evaluation.wer import align_words, count_errors
from csm.judges.speaker import cosine


@dataclass(frozen=True)
class Logs:
    """The logs of all stages, as they were when read; None of a judge that did not run."""

    speech: StageLog
    asr: StageLog | None
    voices: StageLog | None
    phonemes: StageLog | None
    prosody: StageLog | None
    measures: list[StageLog]

    @classmethod
    def read(cls, store: Store, judges: Judges) -> Logs:
        def log(stage: str, judge: Describes | None) -> StageLog | None:
            return None if judge is None else store.log(f"{stage}-{key_of(**judge.describe())}")

        measures = [log("measure", judge) for judge in judges.measures.values()]
        return cls(
            store.log("speech"),
            log("asr", judges.recognizer),
            log("voice", judges.embedder),
            log("phonemes", judges.phonemes),
            log("prosody", judges.prosody),
            [found for found in measures if found is not None],
        )

    def missing(self, takes: Sequence[Take]) -> int:
        """Speech, and results of judges, that other ranks have yet to add."""
        logs = [log for log in (self.speech, self.asr, self.voices, self.phonemes, *self.measures) if log is not None]
        missing = sum(take.key not in log for take in takes for log in logs)
        return missing + sum(self.prosody is not None and pair_key(take) not in self.prosody for take in takes)


class Describes(Protocol):
    """Any judge."""

    def describe(self) -> dict[str, Any]: ...


def judged_utterances(takes: Sequence[Take], logs: Logs, normalizer: TextNormalizer) -> list[Utterance]:
    """One utterance for each take, in order, then the controls."""
    speech, asr, voices = logs.speech, logs.asr, logs.voices
    offsets = {} if logs.phonemes is None else thresholds(takes, logs.phonemes)
    recorded = {t.prompt.id: speech[t.key]["seconds"] for t in takes if t.system is System.ground_truth}
    prompts = list({t.prompt.id: t.prompt for t in takes}.values())
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    utterances, controls = [], []
    for take in takes:
        u = _utterance(take, speech, recorded.get(take.prompt.id))
        if asr is not None:
            add_words(u, asr[take.key]["text"], normalizer, take.prompt)
        if voices is not None:
            _add_voice(u, take, voices)
        if logs.phonemes is not None:
            u.pronounced = pronounced(take, logs.phonemes, offsets)
        if logs.prosody is not None:
            u.prosody = logs.prosody[pair_key(take)]
        found = [pair for log in logs.measures for pair in log[take.key].items()]
        u.measures = {name: value for name, value in found if value is not None}
        u.flags = find_failures(u)
        utterances.append(u)
        if take.system is System.model:
            following = [*prompts[place[u.prompt] + 1 :], *prompts[: place[u.prompt]]]
            controls.append(_control(u, take, following, asr, voices, normalizer))
    return utterances + controls


def add_words(u: Utterance, hypothesis: str, normalizer: TextNormalizer, prompt: EvalPrompt | None = None) -> None:
    """Fills in the transcript and its word errors; with the prompt, also the words leaked from its context."""
    u.hypothesis = hypothesis
    u.reference_words = normalizer(u.text)
    u.alignment = align_words(u.reference_words, normalizer(hypothesis))
    u.errors = count_errors(u.alignment)
    if prompt is not None and prompt.context:
        before = {word for turn in prompt.context for word in normalizer(turn.text).split()}
        own = set(u.reference_words.split())
        added = Counter(word.hypothesis for word in u.alignment if word.kind in ("insert", "substitute"))
        u.leaked = sum(count for word, count in added.items() if word in before - own)


def _utterance(take: Take, speech: StageLog, reference_seconds: float | None) -> Utterance:
    prompt, facts = take.prompt, speech[take.key]
    return Utterance(
        prompt=prompt.id,
        system=take.system,
        seed=take.seed,
        cluster=prompt.cluster,
        speaker=prompt.speaker,
        text=prompt.text,
        seconds=facts["seconds"],
        audio_file=f"audio/{take.key}.wav" if facts["seconds"] else None,
        condition=prompt.condition,
        turn=prompt.turn,
        finish_reason=facts.get("finish_reason"),
        context_turns=facts.get("context_turns"),
        compute_seconds=facts.get("compute_seconds"),
        clipped=facts["clipped"],
        reference_seconds=reference_seconds,
    )


def _add_voice(u: Utterance, take: Take, voices: StageLog) -> None:
    voice, prompt = _voice(voices, take.key), take.prompt
    if prompt.reference is not None and u.system is not System.ground_truth:  # a recording has no cosine with itself
        u.cosine_recording = _cosine(voice, _voice_of([prompt.reference], voices))
    u.cosine_earlier = _cosine(voice, _voice_of(prompt.own_context, voices))
    u.cosine_other = _cosine(voice, _voice_of(prompt.other_context, voices))


def _control(
    u: Utterance,
    take: Take,
    following: Sequence[EvalPrompt],
    asr: StageLog | None,
    voices: StageLog | None,
    normalizer: TextNormalizer,
) -> Utterance:
    """The model's utterance held against the next other text, and a voice that is known to be another one."""
    prompt = take.prompt
    other = next((p for p in following if p.text != prompt.text), None)
    control = replace(
        u, system=System.control, flags=[], alignment=None, errors=None, leaked=None, measures={}, clipped=0.0,
        prosody={}, pronounced=None,
        cosine_recording=None, cosine_earlier=None, cosine_other=None, reference_seconds=None, audio_file=None,
        compute_seconds=None,
    )  # fmt: skip
    if asr is not None and other is not None:
        control.text = other.text
        add_words(control, asr[take.key]["text"], normalizer)
    if voices is not None:
        stranger = next((p for p in following if p.voice is not None and p.voice != prompt.voice), None)
        known = prompt.other_context or (stranger.own_context if stranger and prompt.voice is not None else [])
        control.cosine_earlier = _cosine(_voice(voices, take.key), _voice_of(known, voices))
    return control


def _voice_of(spans: Sequence[AudioSpan], voices: StageLog) -> Tensor | None:
    return _voice(voices, voice_key(spans)) if spans else None


def _voice(voices: StageLog, key: str) -> Tensor | None:
    values = voices[key]["voice"]
    return None if values is None else torch.tensor(values)


def _cosine(a: Tensor | None, b: Tensor | None) -> float | None:
    return None if a is None or b is None else cosine(a, b)
