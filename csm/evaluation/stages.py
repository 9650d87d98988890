"""The stages that make speech and ask judges. Each adds to its log in the store and repeats nothing that is there.

speech      recordings, their resynthesis by the codec, and the model's turns -> audio/<key>.wav
asr         transcripts
voice       embeddings of the speech and of the recordings it is compared with
measures    numbers of single utterances, such as predicted quality
prosody     distances from the recording of the same turn
phonemes    how tested words were said: csm/evaluation/pronunciation.py
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.audio import load_audio, load_channels, save_wav
from csm.config import EvalConfig
from csm.evaluation.prompts import AudioSpan, EvalPrompt, fit_context
from csm.evaluation.store import Item, StageLog, Store, key_of
from csm.evaluation.utterances import CODEC_LEVELS, System
from csm.inference.engine import Request
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.guards import Guards
from csm.inference.segments import Segment
from csm.judges.contours import ProsodyDistance
from csm.judges.measures import AudioMeasure
from csm.judges.recognition import Recognizer
from csm.judges.speaker import SpeakerEmbedder
from csm.progress import track

_RESYNTHESIS = {System.codec_resynthesis: None} | {system: number for number, system in CODEC_LEVELS.items()}
"""Codebooks that a resynthesis hears; None: all."""


@dataclass(frozen=True)
class Take:
    """One piece of speech that the evaluation needs. context: what the model is given, as far as it fits."""

    prompt: EvalPrompt
    system: System
    seed: int | None
    key: str
    context: Sequence[Segment] = ()


def plan_takes(prompts: Sequence[EvalPrompt], generator: Generator, settings: EvalConfig, weights: str) -> list[Take]:
    """Everything that is to be heard, in the report's order. weights: hash of the model's.

    Raises:
        ValueError: a text that does not fit into the model's positions.
    """
    codec, tokenizer = generator.codec.info.to_dict(), generator.tokenizer.identity
    max_frames = generator.max_frames(1000 * settings.max_audio_seconds)
    parameter = next(generator.model.parameters())
    model = key_of(
        weights=weights, codec=codec, tokenizer=tokenizer, dtype=str(parameter.dtype), device=parameter.device.type
    )
    sampling = {"temperature": settings.temperature, "topk": settings.topk, "max_frames": max_frames}
    sampling |= optional_facts(settings)
    levels = [CODEC_LEVELS[level] for level in settings.codec_levels if level < generator.codec.num_codebooks]
    takes = []
    for prompt in prompts:
        recording = None if prompt.reference is None else _span_facts(prompt.reference)
        if recording is not None:
            key = key_of(recording=recording, rate=codec["sample_rate"])
            takes.append(Take(prompt, System.ground_truth, None, key))
        if recording is not None or prompt.reference_codes is not None:
            codes = recording if prompt.reference_codes is None else _hash(prompt.reference_codes)
            for system in [System.codec_resynthesis, *levels]:
                takes.append(Take(prompt, system, None, key_of(codes=codes, codec=codec, level=system.name)))
    for seed in settings.seeds:
        for prompt in prompts:
            context = fit_context(prompt, generator, max_frames)
            key = key_of(
                model=model,
                text=prompt.text,
                speaker=prompt.speaker,
                context=[[turn.speaker, turn.text, _segment_hash(turn)] for turn in context],
                seed=sampling_seed(seed, prompt),
                **sampling,
            )
            takes.append(Take(prompt, System.model, seed, key, context))
    return takes


def sampling_seed(seed: int, prompt: EvalPrompt) -> int:
    """The seed of the noise of a turn. Prompts do not share it, and a prompt keeps it whatever else is evaluated."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt.id}".encode()).digest()[:6], "big")


def make_speech(takes: Sequence[Take], generator: Generator, settings: EvalConfig, store: Store) -> StageLog:
    """Makes what the log lacks, several turns at a time. Nothing is retried, and no guard ends a turn."""
    log = store.log("speech")
    missing = list({take.key: take for take in takes if take.key not in log}.values())
    recorded = [take for take in missing if take.system is not System.model]
    for take in progress(recorded, "codec resynthesis"):
        _keep(take, _recorded(take, generator), generator.sample_rate, store, log)
    spoken = [take for take in missing if take.system is System.model]
    clock = time.monotonic()
    for take, request, turn in progress(_speak(spoken, generator, settings), "generation", len(spoken)):
        result = generator.result(turn, request)
        now = time.monotonic()
        facts = {
            "finish_reason": result.finish_reason,
            "context_turns": len(take.context),
            "compute_seconds": round(now - clock, 3),
        }
        clock = now
        _keep(take, result.audio, generator.sample_rate, store, log, **facts)
    return log


def _recorded(take: Take, generator: Generator) -> Tensor:
    """Audio of the recording, or of its codes.

    The codes stored in the dataset are resynthesized as they are; a recording without codes is encoded first.
    """
    codec, prompt = generator.codec, take.prompt
    if take.system is System.ground_truth:
        assert prompt.reference is not None, "planned only where there is one"
        return prompt.reference.load(codec.sample_rate)
    codes = prompt.reference_codes
    with torch.inference_mode():
        if codes is None:
            assert prompt.reference is not None, "planned only where there are codes or a recording"
            audio = prompt.reference.load(codec.sample_rate)
            codes = codec.encode(audio[None, None].to(codec.device))[0]
        return codec.decode(codes[None, : _RESYNTHESIS[take.system]].to(codec.device))[0, 0].float().cpu()


def optional_facts(settings: EvalConfig) -> dict[str, Any]:
    """Options of sampling that are not at their defaults, for keys and protocols: those of reports made before there
    were such options stay what they are."""
    facts: dict[str, Any] = {} if settings.guidance == 1 else {"guidance": settings.guidance}
    return facts if settings.num_codebooks is None else facts | {"num_codebooks": settings.num_codebooks}


def _speak(
    takes: Sequence[Take], generator: Generator, settings: EvalConfig
) -> Iterator[tuple[Take, Request, SpeechRequest]]:
    """Turns in the order in which they end; each is what the generator gives for it alone."""
    engine, waiting = generator.engine, list(reversed(takes))
    speaking: list[tuple[Take, Request, SpeechRequest]] = []
    while waiting or speaking:
        while waiting and len(speaking) < 2 * len(engine.slots):  # so many are kept in memory, and no slot is idle
            take = waiting.pop()
            turn = SpeechRequest(
                take.prompt.text,
                take.prompt.speaker,
                take.context,
                1000 * settings.max_audio_seconds,
                settings.temperature,
                settings.topk,
                seed=sampling_seed(take.seed or 0, take.prompt),
                guards=Guards.off(),
                guidance=settings.guidance,
            )
            speaking.append((take, engine.submit(generator.request(turn)), turn))
        engine.advance()
        for found in [entry for entry in speaking if entry[1].finished]:
            speaking.remove(found)
            yield found


def _keep(take: Take, audio: Tensor, sample_rate: int, store: Store, log: StageLog, **facts: Any) -> None:
    if len(audio):
        save_wav(store.audio / f"{take.key}.wav", audio, sample_rate)
    clipped = float((audio.abs() > 1).float().mean()) if len(audio) else 0.0
    log.add(take.key, seconds=len(audio) / sample_rate, clipped=clipped, **facts)


def transcribe(
    takes: Sequence[Take], speech: StageLog, recognizer: Recognizer, store: Store, sample_rate: int
) -> StageLog:
    """Transcripts. An empty output has an empty one: every word is deleted."""
    log = store.log(f"asr-{key_of(**recognizer.describe())}")
    for take in progress([t for t in takes if t.key not in log], "transcription"):
        if take.key in log:  # the same speech for two prompts
            continue
        audio = speech_of(take.key, speech, store, sample_rate)
        log.add(take.key, text="" if audio is None else recognizer.transcribe(audio, sample_rate))
    return log


def embed_voices(
    takes: Sequence[Take], speech: StageLog, embedder: SpeakerEmbedder, store: Store, sample_rate: int
) -> StageLog:
    """Voices of the speech and of the recordings that it is compared with (`voice_keys`); null: too short for one."""
    log = store.log(f"voice-{key_of(**embedder.describe())}")

    def add(key: str, audio: Tensor | None, rate: int = sample_rate) -> None:
        voice = None if audio is None else embedder.embed(audio, rate)
        log.add(key, voice=None if voice is None else voice.tolist())

    for take in progress([t for t in takes if t.key not in log], "voices"):
        for key, spans in voice_keys(take.prompt).items():
            if key not in log:
                add(key, *recorded(spans, sample_rate))
        if take.key not in log:
            add(take.key, speech_of(take.key, speech, store, sample_rate))
    return log


def recorded(spans: Sequence[AudioSpan], sample_rate: int) -> tuple[Tensor, int]:
    """Audio of spans and its sample rate. A whole file keeps its own: the encoder resamples it in its own way."""
    [first, *others] = spans
    if not others and (first.start, first.end) == (0.0, None):
        channels, sample_rate = load_channels(first.path)
        if first.channel is not None or len(channels) == 1:
            return channels[first.channel or 0], sample_rate
    return torch.cat([span.load(sample_rate) for span in spans]), sample_rate


def voice_keys(prompt: EvalPrompt) -> dict[str, list[AudioSpan]]:
    """The recordings of voices that a prompt's speech is compared with, by their keys in the log."""
    groups = [[prompt.reference] if prompt.reference else [], prompt.own_context, prompt.other_context]
    return {voice_key(spans): spans for spans in groups if spans}


def voice_key(spans: Sequence[AudioSpan]) -> str:
    return key_of(voice=[_span_facts(span) for span in spans])


def measure(takes: Sequence[Take], speech: StageLog, judge: AudioMeasure, store: Store, sample_rate: int) -> StageLog:
    """The numbers of a measure; null where the utterance does not define one, none at all where it is empty."""
    log = store.log(f"measure-{key_of(**judge.describe())}")
    for take in progress([t for t in takes if t.key not in log], judge.name):
        if take.key in log:
            continue
        audio = speech_of(take.key, speech, store, sample_rate)
        log.add(take.key, **({} if audio is None else judge.measure(audio, sample_rate)))
    return log


def compare_prosody(
    takes: Sequence[Take], speech: StageLog, judge: ProsodyDistance, store: Store, sample_rate: int
) -> StageLog:
    """Distances from the recording of the same turn (`pair_key`); none at all where there is no recording or no speech,
    and for the recording itself."""
    log = store.log(f"prosody-{key_of(**judge.describe())}")
    for take in progress([t for t in takes if pair_key(t) not in log], "prosody"):
        if pair_key(take) in log:
            continue
        reference = None if take.system is System.ground_truth else take.prompt.reference
        audio = speech_of(take.key, speech, store, sample_rate)
        found: dict[str, float] = {}
        if audio is not None and reference is not None:
            found = judge.measure(audio, reference.load(sample_rate), sample_rate)
        log.add(pair_key(take), **found)
    return log


def pair_key(take: Take) -> str:
    """Of a take beside the recording of its turn."""
    reference = take.prompt.reference
    return key_of(speech=take.key, reference=None if reference is None else _span_facts(reference))


def speech_of(key: str, speech: StageLog, store: Store, sample_rate: int) -> Tensor | None:
    return load_audio(store.audio / f"{key}.wav", sample_rate) if speech[key]["seconds"] else None


def progress(work: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """A progress bar on stderr, where there is something to do."""
    if total is None and isinstance(work, Sequence):
        total = len(work)
    yield from track(work, what, total) if total else work


def _span_facts(span: AudioSpan) -> list[Any]:
    found = Path(span.path).stat()
    return [str(span.path), span.start, span.end, span.channel, found.st_size, found.st_mtime_ns]


def _segment_hash(segment: Segment) -> str:
    audio = segment.codes if segment.codes is not None else segment.audio
    assert audio is not None, "prompts have audio or codes for every turn of context"
    return _hash(audio)


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:24]
