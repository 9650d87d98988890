"""Fits the spectral codec of a run without a codec of its own to the plan's recordings, before any unit runs.

Recordings added to a plan later are not used, so that existing codes stay valid.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from csm.codec import SpectralCodec
from csm.codec.mel import SAMPLE_RATE
from csm.config import CodecKind
from csm.progress import TerminalProgress
from data_prep.audio.recording import RecordingAudio
from data_prep.config import DataPrepConfig
from data_prep.execution.pipeline import CODEC_FILE
from data_prep.execution.unit_files import write_json
from data_prep.inputs.plan import Plan
from data_prep.packing.conversation import split_of
from data_prep.reasons import RejectedRecording
from data_prep.records import Recording

MAX_RECORDING_SECONDS = 600.0
"""Used of one recording, so that the codec is fitted to many."""
_MIN_TURN_SECONDS = 0.2


def fit_codec(cfg: DataPrepConfig, plan: Plan, work: Path) -> None:
    """Fits `<work>/codec.safetensors`, unless that was done for the same plan and options, or the run has a codec.

    Raises ValueError if there is no audio to fit it to; the message names the reasons.
    """
    if cfg.codec.kind is not CodecKind.spectral or cfg.codec.path is not None:
        return
    codec_file, marker = work / CODEC_FILE, work / "codec.json"
    made_of = {
        "units": [unit.id for unit in plan.first_units()],
        "num_codebooks": cfg.codec.num_codebooks,
        "codebook_size": cfg.codec.codebook_size,
        "minutes": cfg.encode.fit_minutes,
        "seed": cfg.seed,
        "val_fraction": cfg.pack.val_fraction,
    }
    if codec_file.is_file() and marker.is_file() and json.loads(marker.read_text()) == made_of:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.executor.cpus_per_worker)  # as for units, so that equal input gives equal bits
    try:
        rejected: dict[str, RejectedRecording] = {}
        waveforms = list(_waveforms(cfg, plan, rejected))
        if not waveforms:
            raise ValueError(
                f"{work}: no audio of split train can be read, so there is nothing to fit the spectral codec to "
                f"({_reasons(plan, rejected)}); fix these, or give codec.path=FILE of a codec fitted to other data"
            )
        codec = SpectralCodec.fit(waveforms, cfg.codec.num_codebooks, cfg.codec.codebook_size, cfg.seed)
    finally:
        torch.set_num_threads(threads)
    codec.save(codec_file)
    write_json(marker, made_of)


def _reasons(plan: Plan, rejected: dict[str, RejectedRecording]) -> str:
    """The reasons why there is no audio: of recordings of the plan, and of those that the plan rejected."""
    found = [(name, error.reason, error.message) for name, error in rejected.items()]
    found += [(rejection.recording, rejection.reason, rejection.message) for rejection in plan.rejections]
    if not found:
        return "no recording is of split train, or none of their turns lies within its recording"
    counts = ", ".join(f"{reason} {count}" for reason, count in Counter(reason for _, reason, _ in found).most_common())
    name, _, message = found[0]
    return f"{counts}; the first: {name}: {message}"


def _waveforms(cfg: DataPrepConfig, plan: Plan, rejected: dict[str, RejectedRecording]) -> Iterator[Tensor]:
    """The turns (or all audio, if none are given) of train recordings, in an order drawn from the seed.

    Recordings that cannot be read are added to `rejected`, by id.
    """
    ids = [
        name
        for name, group, split in plan.first_splits()
        if split_of(group, split, cfg.pack.val_fraction, cfg.seed) == "train"
    ]
    ids.sort(key=lambda name: hashlib.sha256(f"{cfg.seed}/fit/{name}".encode()).digest())
    budget = cfg.encode.fit_minutes * 60 * SAMPLE_RATE
    minutes = TextColumn("{task.completed:.1f} minutes")
    with TerminalProgress(TextColumn("{task.description}"), BarColumn(), minutes, TimeRemainingColumn()) as progress:
        task = progress.add_task("Fitting the codec", total=cfg.encode.fit_minutes)
        for name in ids:
            if budget <= 0:
                break
            try:
                for waveform in _pieces(plan.recording(name)):
                    budget -= waveform.numel()
                    progress.advance(task, waveform.numel() / SAMPLE_RATE / 60)
                    yield waveform
            except RejectedRecording as error:  # `vad`, which decodes it again, rejects it for good
                rejected[name] = error
        progress.update(task, total=progress.tasks[task].completed)  # there is no more


def _pieces(recording: Recording) -> Iterator[Tensor]:
    audio = RecordingAudio(recording)
    try:
        if recording.turns is None:
            yield torch.from_numpy(audio.track(None, SAMPLE_RATE, 0.0, min(recording.seconds, MAX_RECORDING_SECONDS)))
            return
        for turn in recording.turns:
            end = recording.seconds if turn.end is None else min(turn.end, recording.seconds)
            channel_there = turn.channel is None or turn.channel < recording.channels
            if turn.start >= 0 and end - turn.start >= _MIN_TURN_SECONDS and channel_there:
                yield torch.from_numpy(audio.track(turn.channel, SAMPLE_RATE, turn.start, end))
    finally:
        audio.close()
