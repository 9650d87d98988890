"""Recording -> one waveform for each turn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from csm.audio import load_channels, resample
from csm.config import DataPrepConfig
from data_prep.manifest import AnnotatedTurn, Recording
from data_prep.rejects import Reason, Rejects

END_TOLERANCE_SECONDS = 0.1
"""How far a turn may reach beyond the audio (annotation tools round) before its times are taken to be wrong."""


@dataclass
class CutTurn:
    """A turn and its audio: mono float32 [N] at the codec's sample rate."""

    turn: AnnotatedTurn
    start: float  # seconds in the recording, as cut
    end: float
    waveform: Tensor


def cut_turns(
    recording: Recording, cfg: DataPrepConfig, sample_rate: int, rejects: Rejects
) -> list[CutTurn | None] | None:
    """Reads a recording and cuts out its turns, in the order given; a rejected turn leaves None in its place.

    Returns None if the whole recording is rejected. Every rejection is added to `rejects`.
    """
    if not recording.path.is_file():
        rejects.add_recording(recording, Reason.audio_missing, f"{recording.path}: no such file")
        return None
    try:
        channels, file_rate = load_channels(recording.path)
    except ValueError as error:
        rejects.add_recording(recording, Reason.audio_corrupt, str(error))
        return None
    cut: list[CutTurn | None] = []
    for turn in recording.turns:
        problem = _problem(turn, channels, file_rate, cfg)
        if problem:
            rejects.add_turn(recording, turn, *problem)
            cut.append(None)
            continue
        first = round(turn.start * file_rate)
        last = channels.shape[1] if turn.end is None else min(round(turn.end * file_rate), channels.shape[1])
        piece = channels[:, first:last]
        mono = piece.mean(dim=0) if turn.channel is None else piece[turn.channel].clone()
        waveform = resample(mono, file_rate, sample_rate)
        cut.append(CutTurn(turn, round(first / file_rate, 6), round(last / file_rate, 6), waveform))
    return cut


def _problem(turn: AnnotatedTurn, channels: Tensor, file_rate: int, cfg: DataPrepConfig) -> tuple[Reason, str] | None:
    """Why a turn cannot be used, or None."""
    num_channels, length = channels.shape
    duration = length / file_rate
    end = duration if turn.end is None else turn.end
    if not turn.text:
        return Reason.empty_text, "its text is missing or empty"
    if end <= turn.start:
        return Reason.bad_times, f"it ends at {end} s, not after its start at {turn.start} s"
    if turn.start < 0 or turn.start >= duration or end > duration + END_TOLERANCE_SECONDS:
        return Reason.times_outside_audio, f"its times {turn.start}..{end} s are outside the audio of {duration:.2f} s"
    if turn.channel is not None and turn.channel >= num_channels:
        return Reason.channel_missing, f"there is no channel {turn.channel}, only 0..{num_channels - 1}"
    seconds = min(end, duration) - turn.start
    if seconds < cfg.min_turn_seconds:
        return Reason.too_short, f"{seconds:.2f} s are less than min_turn_seconds={cfg.min_turn_seconds}"
    if seconds > cfg.max_turn_seconds:
        return Reason.too_long, f"{seconds:.2f} s are more than max_turn_seconds={cfg.max_turn_seconds}"
    return None
