"""Utterances with everything known about them, put together from the logs of the stages. Nothing here is slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from csm.evaluation.failures import find_failures
from csm.evaluation.prompts import AudioSpan, EvalPrompt
from csm.evaluation.stages import Take, voice_key
from csm.evaluation.store import StageLog
from csm.evaluation.text_norm import TextNormalizer
from csm.evaluation.utterances import System, Utterance
from csm.evaluation.wer import align_words, count_errors
from csm.judges.speaker import cosine


def judged_utterances(
    takes: Sequence[Take],
    speech: StageLog,
    asr: StageLog | None,
    voices: StageLog | None,
    measures: Sequence[StageLog],
    normalizer: TextNormalizer,
) -> list[Utterance]:
    """One utterance for each take, in order, then the controls. A log is None if its judge did not run."""
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
        found = [pair for log in measures for pair in log[take.key].items()]
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
