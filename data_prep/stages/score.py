"""Stage `score`: measures of turns' audio, to filter them, and fingerprints and a hash, to find duplicates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyloudnorm

from csm.judges.dnsmos import MIN_HOP_SECONDS, Dnsmos
from csm.judges.music import MusicDetector
from csm.judges.speaker import Resemblyzer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import ScoreConfig, TranscribeBackend, TranscribeConfig
from data_prep.records import MODEL_RATE, DraftTurn, Scores, Turns, TurnScore
from data_prep.speech.fingerprint import fingerprint
from data_prep.stages.base import Item
from data_prep.stages.voices import match_voices

if TYPE_CHECKING:
    from data_prep.stages.given_texts import GivenTexts

# The largest value of mu-law, which telephones use, is 0.980 of full scale; A-law's 0.984, 8-bit PCM's 0.992.
_CLIPPED = 0.98
# Gating blocks of ITU-R BS.1770-4, 75% overlapping.
_BLOCK_SECONDS, _BLOCK_STEP_SECONDS = 0.4, 0.1
# A frequency has content if it comes within 60 dB of the strongest one in at least one frame of twenty: consonants do,
# quantization noise and the residue of resamplers do not, and a click is in too few frames.
_CONTENT_DB, _CONTENT_QUANTILE = 60.0, 0.95
_FRAME_SECONDS = 0.032
_DNSMOS_SECONDS = 600.0  # of turns in memory at once


@dataclass
class ScoreOptions:
    """Options that the stage's results depend on."""

    dnsmos: bool
    dnsmos_hop_seconds: float
    fingerprint: bool
    voices: bool
    music: bool
    recognizer: TranscribeConfig | None  # of given texts


class ScoreStage:
    """Loudness, clipping, bandwidth and fingerprint of every turn that is not rejected; the recording's hash. If asked
    for, DNSMOS, music, the similarity of voices, and the error rate of given texts.

    Raises ValueError for a hop of DNSMOS below 4.5 s.

    transcribe: backend of the recognizer of given texts, whose model is `cfg.cer_model`
    """

    name = "score"
    version = 3  # 2: without texts and voices; 1: joined files, changes of the sample rate and pauses read otherwise
    reads: tuple[str, ...] = ("turns",)
    result = Scores
    group_seconds = 0.0

    def __init__(self, cfg: ScoreConfig, transcribe: TranscribeConfig | None = None) -> None:
        if cfg.dnsmos and cfg.dnsmos_hop_seconds < MIN_HOP_SECONDS:
            raise ValueError(f"score.dnsmos_hop_seconds={cfg.dnsmos_hop_seconds:g} must be at least {MIN_HOP_SECONDS}")
        recognizer = _fast_recognizer(cfg, transcribe or TranscribeConfig())
        self.options = ScoreOptions(
            cfg.dnsmos, cfg.dnsmos_hop_seconds, cfg.fingerprint, cfg.voices, cfg.music, recognizer
        )
        models = [
            ("dnsmos", cfg.dnsmos),
            ("voices", cfg.voices),
            ("music", cfg.music),
            ("texts", recognizer is not None),
        ]
        self.backend = "+".join(name for name, wanted in models if wanted) or "signal"
        self.device = "cpu" if self.backend == "signal" else cfg.device

    def process(self, items: Sequence[Item]) -> list[Scores]:
        return [self._score(item) for item in items]

    def _score(self, item: Item) -> Scores:
        turns: Turns = item.results["turns"]
        kept = [turn for turn in turns.turns if turn.rejection is None]
        scores = [self._measure(item, turn) for turn in kept]
        if self.options.dnsmos:
            for group in _groups(kept):
                clips = [item.audio.track(kept[i].channel, MODEL_RATE, kept[i].start, kept[i].end) for i in group]
                for i, (sig, bak, ovrl) in zip(group, self._dnsmos(clips).tolist(), strict=True):
                    scores[i].sig, scores[i].bak, scores[i].ovrl = sig, bak, ovrl
        if self.options.music:
            for turn, score in zip(kept, scores, strict=True):
                score.music = self._music.share(item.audio.track(turn.channel, MODEL_RATE, turn.start, turn.end))
        of_turn = {score.number: score for score in scores}
        if self._texts is not None:
            for number, (heard, cer) in self._texts.compare(item.audio, kept).items():
                of_turn[number].heard, of_turn[number].cer = heard, cer
        if self.options.voices:
            for number, match in match_voices(self._encoder, item.audio, kept).items():
                of_turn[number].half_similarity, of_turn[number].speaker_similarity = match.halves, match.to_speaker
        return Scores(scores, pcm_sha256(item.audio))

    def _measure(self, item: Item, turn: DraftTurn) -> TurnScore:
        rate = item.audio.rate
        audio = item.audio.track(turn.channel, rate, turn.start, turn.end)
        codes: list[int] = []
        if self.options.fingerprint:
            codes = fingerprint(item.audio.track(turn.channel, MODEL_RATE, turn.start, turn.end))
        return TurnScore(
            turn.number, loudness(audio, rate), clipped(audio), bandwidth(audio, rate), None, None, None, codes
        )

    @cached_property
    def _dnsmos(self) -> Dnsmos:
        return Dnsmos(self.options.dnsmos_hop_seconds, self.device)

    @cached_property
    def _music(self) -> MusicDetector:
        return MusicDetector()

    @cached_property
    def _encoder(self) -> Resemblyzer:
        return Resemblyzer(self.device)

    @cached_property
    def _texts(self) -> GivenTexts | None:
        recognizer = self.options.recognizer
        if recognizer is None:
            return None
        from data_prep.stages.given_texts import GivenTexts  # slow to import

        return GivenTexts(replace(recognizer, device=self.device))


def _fast_recognizer(cfg: ScoreConfig, transcribe: TranscribeConfig) -> TranscribeConfig | None:
    """The recognizer of given texts: greedy, of the backend that transcribes, if there is one; without its device, on
    which results do not depend."""
    if cfg.cer_model is None:
        return None
    none = transcribe.backend is TranscribeBackend.none
    backend = TranscribeBackend.faster_whisper if none else transcribe.backend
    return replace(transcribe, backend=backend, model=cfg.cer_model, device="", beam_size=1)


def loudness(audio: np.ndarray, rate: int) -> float | None:
    """Integrated loudness in LUFS (ITU-R BS.1770-4, which EBU R 128 refers to) of float32 [N]; None for silence.

    A turn shorter than the standard's block of 0.4 s is one block.
    """
    block, samples = gating(len(audio), rate)
    audio = audio[:samples]
    # this filter class has the coefficients of the standard; those of the default are 0.1 dB off
    meter = pyloudnorm.Meter(rate, filter_class="DeMan", block_size=block)
    value = float(meter.integrated_loudness(audio)) if len(audio) else -math.inf
    return value if math.isfinite(value) else None


def gating(samples: int, rate: int) -> tuple[float, int]:
    """Block in seconds for audio of that many samples, and how many of them to measure: no incomplete last block."""
    seconds = samples / rate
    if samples < _BLOCK_SECONDS * rate:
        return math.nextafter(seconds, 0.0), samples  # pyloudnorm rejects a block that rounding makes longer than that
    # pyloudnorm would count an incomplete last block as a whole one
    steps = math.floor((seconds - _BLOCK_SECONDS) / _BLOCK_STEP_SECONDS + 1e-6)
    return _BLOCK_SECONDS, min(samples, math.ceil((_BLOCK_SECONDS + steps * _BLOCK_STEP_SECONDS) * rate))


def clipped(audio: np.ndarray) -> float | None:
    """Share of the samples of float32 [N] at full scale; None if N is 0."""
    return float(np.mean(np.abs(audio) >= _CLIPPED)) if len(audio) else None


def bandwidth(audio: np.ndarray, rate: int) -> float | None:
    """Highest frequency in Hz with content in float32 [N]; None for silence, and for less than 32 ms."""
    size = round(_FRAME_SECONDS * rate)
    if len(audio) < size:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[:: size // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)))
    usual = np.quantile(power, _CONTENT_QUANTILE, axis=0)
    if usual.max() == 0:
        return None
    return float(np.flatnonzero(usual >= usual.max() * 10 ** (-_CONTENT_DB / 10))[-1] * rate / size)


def pcm_sha256(audio: RecordingAudio) -> str:
    """Hash of the decoded audio: rate and channels, then for each sample all channels as little-endian float32."""
    digest = hashlib.sha256(f"{audio.rate} {audio.num_channels}\n".encode())
    for block in audio.blocks():
        digest.update(block.astype("<f4").tobytes())
    return digest.hexdigest()


def _groups(turns: Sequence[DraftTurn]) -> list[list[int]]:
    """Indices of turns, in groups of at most `_DNSMOS_SECONDS`, or of one longer turn."""
    groups: list[list[int]] = []
    seconds = math.inf
    for i, turn in enumerate(turns):
        seconds += turn.end - turn.start
        if seconds > _DNSMOS_SECONDS:
            groups.append([])
            seconds = turn.end - turn.start
        groups[-1].append(i)
    return groups
