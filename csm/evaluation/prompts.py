"""Evaluation prompts, taken from a prepared dataset or from a JSON Lines file.

A prompt is one turn to be spoken, with the turns before it as context. The recorded turn itself, where there is one,
never reaches the model: it is the ground truth that the generated turn is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.audio import load_audio
from csm.codec.base import Codec, check_same_codec
from csm.config import EvalConfig
from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample, Turn
from csm.evaluation.sets.items import Target
from csm.files import read_json_lines
from csm.inference.generator import Generator, Segment
from csm.inference.records import TURN_FIELDS, check_turn

_PROMPT_FIELDS = ("id", "text", "speaker", "audio", "context", "cluster")


@dataclass(frozen=True)
class AudioSpan:
    """A stretch of a recording: `[start, end)` in seconds, `end` None = to its end; channel None = all mixed."""

    path: Path
    start: float = 0.0
    end: float | None = None
    channel: int | None = None

    def load(self, sample_rate: int) -> Tensor:
        """Mono float32 `[num_samples]`. Raises ValueError if the file is missing, corrupt or shorter than `start`."""
        audio = _load_recording(self.path, sample_rate, self.channel)
        end = len(audio) if self.end is None else round(self.end * sample_rate)
        span = audio[round(self.start * sample_rate) : end]
        if not len(span):
            raise ValueError(f"{self.path}: holds no audio at {self.start:.2f} s; was it replaced since preparation?")
        return span


@lru_cache(maxsize=4)  # consecutive prompts come from one recording
def _load_recording(path: Path, sample_rate: int, channel: int | None) -> Tensor:
    return load_audio(path, sample_rate, channel)


@dataclass
class EvalPrompt:
    """One turn to be spoken.

    reference:         the recorded turn; None if there is none or its file is missing
    missing_reference: why `reference` is None; None if it is not
    reference_codes:   the recorded turn as int64 codes `[K, T]` of the model's codec; None for a text-only prompt
    own_context:       original recordings of the same speaker's turns in `context`, as far as they exist
    other_context:     those of the other speakers
    cluster:           prompts of one cluster (same show, call or voice) are not independent, and are resampled together
    condition:         of the experiment, such as "3 turns"; the report has a row for each
    turn:              place of the turn in its conversation, from 0; None if it has none
    target:            the word whose pronunciation is tested
    voice:             whose voice it is, where prompts of different names are known to be different people
    """

    id: str
    text: str
    speaker: int
    cluster: str
    context: list[Segment] = field(default_factory=list)
    reference: AudioSpan | None = None
    reference_codes: Tensor | None = None
    own_context: list[AudioSpan] = field(default_factory=list)
    other_context: list[AudioSpan] = field(default_factory=list)
    missing_reference: str | None = None
    condition: str = ""
    turn: int | None = None
    voice: str | None = None
    target: Target | None = None


@dataclass
class PromptSet:
    """Prompts, where they come from, as plain values for the report, and reservations about them."""

    prompts: list[EvalPrompt]
    origin: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def dataset_prompts(
    dataset: ShardedDataset, cfg: EvalConfig, codec: Codec, checkpoint: str, min_context: int = 0
) -> PromptSet:
    """Up to `cfg.max_prompts` turns of split `cfg.split`, spread over as many conversations as possible.

    Conversations are taken in the dataset's own (shuffled) order; each gives its last suitable turn, then, if there
    are not enough conversations, its last but one, and so on. A turn is suitable if it may be predicted, has
    `min_context` turns before it and, with `cfg.speaker` set, is spoken by that speaker id.

    Raises:
        ValueError: another codec made the dataset, the split is empty, or no turn is suitable.
    """
    where = f"dataset {dataset.path} and checkpoint {checkpoint}"
    check_same_codec(dataset.codec, codec.info, where)
    indices = dataset.select(cfg.split)
    if not len(indices):
        raise ValueError(f"{dataset.path}: split {cfg.split!r} holds no conversation; choose another eval.split")
    turns_by_conversation: list[list[EvalPrompt]] = []
    for index in indices:
        sample = dataset.read(int(index))
        suitable = [
            number
            for number, turn in enumerate(sample.turns)
            if turn.loss and number >= min_context and (cfg.speaker is None or turn.speaker == cfg.speaker)
        ]
        if suitable:
            turns_by_conversation.append(
                [_prompt_from_turn(dataset, sample, number, cfg.context_turns) for number in reversed(suitable)]
            )
        if len(turns_by_conversation) == cfg.max_prompts:
            break
    rounds = zip_longest(*turns_by_conversation)
    prompts = [prompt for turns in rounds for prompt in turns if prompt is not None][: cfg.max_prompts]
    if not prompts:
        whose = "" if cfg.speaker is None else f" by speaker {cfg.speaker}"
        where = f" after {min_context} turns or more" if min_context else ""
        raise ValueError(
            f"{dataset.path}: no turn of split {cfg.split!r} is spoken{whose}{where}; change eval.speaker, eval.split "
            "or eval.context_turns"
        )
    origin = {"dataset": str(dataset.path), "fingerprint": dataset.info.fingerprint, "split": cfg.split}
    return PromptSet(prompts, origin | {"speaker": "all" if cfg.speaker is None else cfg.speaker})


def _prompt_from_turn(dataset: ShardedDataset, sample: Sample, number: int, context_turns: int) -> EvalPrompt:
    path = dataset.audio_path(sample)
    recording = path if path is not None and path.is_file() else None

    def span(turn: Turn) -> AudioSpan | None:
        return None if recording is None else AudioSpan(recording, turn.start, turn.end, turn.channel)

    def codes(turn: Turn) -> Tensor:
        return torch.from_numpy(sample.turn_codes(turn))

    target = sample.turns[number]
    earlier = sample.turns[max(0, number - context_turns) : number]
    own = [span(turn) for turn in earlier if turn.speaker == target.speaker]
    others = [span(turn) for turn in earlier if turn.speaker != target.speaker]
    return EvalPrompt(
        id=f"{sample.key}/{number}",
        text=target.text,
        speaker=target.speaker,
        cluster=sample.group,
        context=[Segment(turn.speaker, turn.text, codes=codes(turn)) for turn in earlier],
        reference=span(target),
        reference_codes=codes(target),
        own_context=[found for found in own if found is not None],
        other_context=[found for found in others if found is not None],
        turn=number,
        missing_reference=None
        if recording is not None
        else str(path or f"the dataset names no audio file for {sample.recording}"),
    )


def file_prompts(path: Path, codec: Codec, max_prompts: int) -> PromptSet:
    """Prompts of a JSON Lines file, one object a line.

    `id` (unique), `text` and `speaker` (from 0) are required. Optional: `audio`, a recording of it (ground truth);
    `context`, a list of the `{"speaker", "text", "audio"}` turns before; `cluster`, a name shared by prompts that are
    not independent (default: the id). Audio paths are relative to the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not such an object or names missing audio (its number is given), or there are no prompts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompts file (eval.prompts)")
    prompts: dict[str, EvalPrompt] = {}
    for number, record in read_json_lines(path):
        prompt = _prompt_from_record(record, f"{path}:{number}", path.parent, codec)
        if prompt.id in prompts:
            raise ValueError(f"{path}:{number}: id {prompt.id!r} occurs twice; ids must be unique")
        prompts[prompt.id] = prompt
    if not prompts:
        raise ValueError(f"{path}: holds no prompts; write one JSON object a line")
    return PromptSet(list(prompts.values())[:max_prompts], {"prompts_file": str(path), "prompts_in_file": len(prompts)})


def _prompt_from_record(record: Any, where: str, folder: Path, codec: Codec) -> EvalPrompt:
    speaker, text = check_turn(record, where, required=("id", "text", "speaker"), allowed=_PROMPT_FIELDS)
    if not isinstance(record.get("context", []), list):
        raise ValueError(f"{where}: context must be a list of turns")
    context: list[Segment] = []
    own_context: list[AudioSpan] = []
    other_context: list[AudioSpan] = []
    for turn in record.get("context", []):
        turn_speaker, turn_text = check_turn(turn, f"{where}: context", required=TURN_FIELDS, allowed=TURN_FIELDS)
        span = _existing_span(folder / turn["audio"], where)
        context.append(Segment(turn_speaker, turn_text, audio=span.load(codec.sample_rate)))
        (own_context if turn_speaker == speaker else other_context).append(span)
    return EvalPrompt(
        id=str(record["id"]),
        text=text,
        speaker=speaker,
        cluster=str(record.get("cluster", record["id"])),
        context=context,
        reference=_existing_span(folder / record["audio"], where) if "audio" in record else None,
        own_context=own_context,
        other_context=other_context,
        missing_reference=None if "audio" in record else "the prompts file names no audio for it",
    )


def _existing_span(path: Path, where: str) -> AudioSpan:
    if not path.is_file():
        raise ValueError(f"{where}: audio file {path} does not exist")
    return AudioSpan(path)


def fit_context(prompt: EvalPrompt, generator: Generator, max_frames: int) -> list[Segment]:
    """The context as far as it fits: the oldest turns are dropped until prompt and `max_frames` fit the model.

    Raises:
        ValueError: the text alone does not fit.
    """
    room = generator.model.config.max_seq_len - max_frames - 1  # the generator wants one position to spare
    room -= len(generator.tokenizer.encode_turn(prompt.text, prompt.speaker))
    if room < 0:
        raise ValueError(
            f"prompt {prompt.id}: its text and {max_frames} frames of audio exceed the model's "
            f"{generator.model.config.max_seq_len} positions; lower eval.max_audio_seconds"
        )
    kept: list[Segment] = []
    for segment in reversed(prompt.context):
        text = generator.tokenizer.encode_turn(segment.text, segment.speaker)
        room -= len(text) + generator.segment_frames(segment) + 1
        if room < 0:
            break
        kept.insert(0, segment)
    return kept
