"""The stages that make speech and judge it. Each fills in its part of every utterance; none skips one."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from csm.config import EvalConfig
from csm.evaluation.prompts import EvalPrompt, fit_context
from csm.evaluation.scores import Flag, System, Utterance
from csm.evaluation.text_norm import TextNormalizer
from csm.evaluation.wer import align_words, count_errors
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.guards import Guards
from csm.judges.recognition import Recognizer
from csm.judges.speaker import SpeakerEmbedder, cosine

BATCH = 32
"""Turns between two steps of the progress bar; the generator speaks as many at a time as it has slots."""


def recorded(prompts: list[EvalPrompt], generator: Generator) -> list[Utterance]:
    """Ground truth of every prompt that has its recording, and its resynthesis by the model's codec.

    The codes stored in the dataset are resynthesized as they are; a recording without codes is encoded first.
    """
    codec, utterances = generator.codec, []
    for prompt in track(prompts, "codec resynthesis", console=Console(stderr=True)):
        codes = prompt.reference_codes
        if prompt.reference is not None:
            audio = prompt.reference.load(codec.sample_rate)
            utterances.append(_utterance(prompt, System.ground_truth, audio, codec.sample_rate))
            if codes is None:
                codes = codec.encode(audio[None, None].to(codec.device))[0]
        if codes is not None:
            with torch.inference_mode():
                audio = codec.decode(codes[None].to(codec.device))[0, 0].float().cpu()
            utterances.append(_utterance(prompt, System.codec_resynthesis, audio, codec.sample_rate))
    return utterances


def generated(prompts: list[EvalPrompt], generator: Generator, settings: EvalConfig) -> list[Utterance]:
    """Speaks every prompt once for each seed, several at a time. Nothing is retried, and no guard ends a turn."""
    max_frames = generator.max_frames(1000 * settings.max_audio_seconds)
    takes = [(seed, number) for seed in settings.seeds for number in range(len(prompts))]
    parts = [takes[start : start + BATCH] for start in range(0, len(takes), BATCH)]
    utterances = []
    for part in track(parts, "generation", console=Console(stderr=True)):
        turns = [
            SpeechRequest(
                prompts[number].text,
                prompts[number].speaker,
                fit_context(prompts[number], generator, max_frames),
                1000 * settings.max_audio_seconds,
                settings.temperature,
                settings.topk,
                seed=seed * 1_000_003 + number,  # prompts must not share their noise
                guards=Guards.off(),
            )
            for seed, number in part
        ]
        started = time.monotonic()
        results = generator.generate_batch(turns)
        seconds = (time.monotonic() - started) / len(part)
        for (seed, number), turn, result in zip(part, turns, results, strict=True):
            utterance = _utterance(prompts[number], System.model, result.audio, generator.sample_rate)
            utterance.seed, utterance.context_turns = seed, len(turn.context)
            utterance.compute_seconds = round(seconds, 3)
            if result.frames == 0:
                utterance.flags.append(Flag.empty)
            if result.finish_reason != "stop":
                utterance.flags.append(Flag.no_end)
            utterances.append(utterance)
    return utterances


def transcribe(utterances: list[Utterance], recognizer: Recognizer, normalizer: TextNormalizer) -> None:
    """Fills in transcripts and word errors. An empty output has an empty transcript: every word is deleted."""
    for u in track(utterances, "transcription", console=Console(stderr=True)):
        u.hypothesis = recognizer.transcribe(u.audio, u.sample_rate) if len(u.audio) else ""
        u.reference_words = normalizer(u.text)
        hypothesis = normalizer(u.hypothesis)
        u.alignment = align_words(u.reference_words, hypothesis)
        u.errors = count_errors(u.alignment)
        if len(hypothesis.split()) > 2 * max(1, u.errors.reference_words):
            u.flags.append(Flag.long_transcript)


def compare_voices(
    utterances: list[Utterance], prompts: list[EvalPrompt], embedder: SpeakerEmbedder, sample_rate: int
) -> None:
    """Fills in cosines with the original recordings: of the same turn, and of the speaker's turns before it."""
    recording: dict[str, Tensor | None] = {}
    earlier: dict[str, Tensor | None] = {}
    for prompt in prompts:
        if prompt.reference is not None:
            recording[prompt.id] = embedder.embed(prompt.reference.load(sample_rate), sample_rate)
        if prompt.own_context:
            joined = torch.cat([span.load(sample_rate) for span in prompt.own_context])
            earlier[prompt.id] = embedder.embed(joined, sample_rate)
    for u in track(utterances, "voices", console=Console(stderr=True)):
        voice = embedder.embed(u.audio, u.sample_rate) if len(u.audio) else None
        if voice is None:
            continue
        same, before = recording.get(u.prompt), earlier.get(u.prompt)
        if same is not None and u.system is not System.ground_truth:  # a recording has no cosine with itself
            u.cosine_recording = cosine(voice, same)
        if before is not None:
            u.cosine_earlier = cosine(voice, before)


def _utterance(prompt: EvalPrompt, system: System, audio: Tensor, sample_rate: int) -> Utterance:
    return Utterance(prompt.id, system, None, prompt.cluster, prompt.speaker, prompt.text, audio, sample_rate)
