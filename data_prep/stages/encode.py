"""Stage `encode`: codes of turns, each from its own track and from a fresh codec state, as at inference.

A turn can be encoded several times, begun earlier by fractions of a frame: the same sounds then fall differently into
frames and give other codes, which makes more of little data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from csm.codec import Codec, encode_turns
from data_prep.config import EncodeConfig, LimitsConfig
from data_prep.reasons import Reason
from data_prep.records import DraftTurn, Encoded, EncodedTurn, Rejection, Scores, Turns
from data_prep.speech.limits import check
from data_prep.stages.base import Item

PEAK = 0.99
"""Highest absolute value of a sample after a gain."""

BATCH_SECONDS = {"cpu": 60.0, "cuda": 300.0}
"""`encode.batch_seconds` by default. Mimi is about a thousand kernels whatever the batch: with a small one the GPU
waits for the host to launch them."""


@dataclass(frozen=True)
class EncodeOptions:
    """Options that the stage's results depend on."""

    codec: str  # identity of the weights
    num_codebooks: int
    loudness: float | None
    max_gain_db: float
    shifts: int
    loose: LimitsConfig


class EncodeStage:
    """Encodes the turns that pass the loose limits, in batches of similar length (`csm.codec.encode_turns`)."""

    name = "encode"
    version = 2  # 1: joined files, changes of the sample rate and pauses in time stamps were read otherwise
    reads: tuple[str, ...] = ("turns", "score")
    result = Encoded

    def __init__(self, cfg: EncodeConfig, loose: LimitsConfig, codec: Codec) -> None:
        self.codec = codec
        self.device = str(codec.device)
        self.batch_seconds = cfg.batch_seconds or BATCH_SECONDS.get(codec.device.type, BATCH_SECONDS["cpu"])
        self.options = EncodeOptions(
            codec.identity, codec.num_codebooks, cfg.loudness, cfg.max_gain_db, cfg.shifts, loose
        )
        self.backend = codec.name
        self.group_seconds = 4 * self.batch_seconds

    def process(self, items: Sequence[Item]) -> list[Encoded]:
        waveforms: list[torch.Tensor] = []
        results: list[Encoded] = []
        chosen: list[tuple[Encoded, DraftTurn, float, int]] = []
        for item in items:
            result = Encoded([], [])
            results.append(result)
            gains = self._gains(item)
            for turn in self._wanted(item, result):
                audio = item.audio.track(turn.channel, self.codec.sample_rate, turn.start, turn.end)
                gain = min(gains[turn.speaker], _headroom_db(audio)) if gains else 0.0
                for shift in range(self.options.shifts):
                    begun = self._begun_earlier(item, turn, shift) if shift else audio
                    waveforms.append(torch.from_numpy(begun * np.float32(10 ** (gain / 20)) if gain else begun))
                    chosen.append((result, turn, gain, shift))
        for (result, turn, gain, shift), codes in zip(
            chosen, encode_turns(self.codec, waveforms, self.batch_seconds), strict=True
        ):
            if not codes.any(dim=0).all():
                message = "a frame has only zero codes, which mean end of speech"
                result.rejected.append(Rejection(turn=turn.number, reason=Reason.end_frame, message=message))
                continue
            stored = codes.numpy().astype("<u2").tobytes()
            result.turns.append(EncodedTurn(turn.number, codes.shape[1], stored, round(gain, 2), shift))
        return results

    def _begun_earlier(self, item: Item, turn: DraftTurn, shift: int) -> np.ndarray:
        """The samples of a turn from `shift / shifts` of a frame before its start; before the recording is silence."""
        rate = self.codec.sample_rate
        earlier = round(shift / self.options.shifts * rate / self.codec.frame_rate) / rate
        audio = item.audio.track(turn.channel, rate, max(turn.start - earlier, 0.0), turn.end)
        silence = max(round((earlier - turn.start) * rate), 0)
        return np.concatenate([np.zeros(silence, np.float32), audio])

    def _wanted(self, item: Item, result: Encoded) -> list[DraftTurn]:
        """The turns to encode; those beyond the loose limits are rejected in `result`."""
        turns: Turns = item.results["turns"]
        scores: Scores = item.results["score"]
        score_of = {score.number: score for score in scores.turns}
        wanted = []
        for turn in turns.turns:
            if turn.rejection is not None:
                continue
            rejection = check(turn, score_of.get(turn.number), self.options.loose, None)
            if rejection is None:
                wanted.append(turn)
            else:
                result.rejected.append(rejection)
        return wanted

    def _gains(self, item: Item) -> dict[str, float]:
        """Gain in dB for each speaker, from the mean power of the speaker's turns; empty if loudness is not changed."""
        if self.options.loudness is None:
            return {}
        turns: Turns = item.results["turns"]
        scores: Scores = item.results["score"]
        loudness = {score.number: score.lufs for score in scores.turns if score.lufs is not None}
        power: dict[str, float] = defaultdict(float)
        seconds: dict[str, float] = defaultdict(float)
        for turn in turns.turns:
            lufs = loudness.get(turn.number)
            if lufs is not None and math.isfinite(lufs):
                power[turn.speaker] += (turn.end - turn.start) * 10 ** (lufs / 10)
                seconds[turn.speaker] += turn.end - turn.start
        gains: dict[str, float] = defaultdict(float)
        for speaker in power:
            wanted = self.options.loudness - 10 * math.log10(power[speaker] / seconds[speaker])
            gains[speaker] = max(-self.options.max_gain_db, min(self.options.max_gain_db, wanted))
        return gains


def _headroom_db(audio: np.ndarray) -> float:
    peak = float(np.abs(audio).max()) if audio.size else 0.0
    return 20 * math.log10(PEAK / peak) if peak > 0 else math.inf
