"""Limits on the measures of a turn's audio, text and recognition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_prep.config import LimitsConfig
from data_prep.reasons import Reason
from data_prep.records import DraftTurn, Rejection, TurnScore
from data_prep.speech.text_checks import chars_per_second, hallucination, repetition, shortened

_RATE_STEPS = 20  # per character/s: the resolution of the counts
_MIN_TURNS = 20  # of a source; the median of fewer means nothing
_NORMAL_MAD = 1.4826  # standard deviation of a normal distribution with a median absolute deviation of 1


@dataclass
class SourceRates:
    """Speech rates of a source's turns: median and robust standard deviation, in characters/s."""

    median: float
    deviation: float


@dataclass
class RateCounts:
    """Histogram of the speech rates of any number of turns, added in any order."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, turn: DraftTurn) -> None:
        if turn.end > turn.start:
            self.counts[round(_rate(turn) * _RATE_STEPS)] += 1

    def rates(self) -> SourceRates | None:
        """None for fewer than 20 turns, or if more than half of them are equally fast."""
        if self.counts.total() < _MIN_TURNS:
            return None
        median = _median(self.counts)
        distances: Counter[int] = Counter()
        for rate, turns in self.counts.items():
            distances[abs(rate - median)] += turns
        deviation = _NORMAL_MAD * _median(distances)
        return SourceRates(median / _RATE_STEPS, deviation / _RATE_STEPS) if deviation > 0 else None


def check(
    turn: DraftTurn, score: TurnScore | None, limits: LimitsConfig, rates: SourceRates | None
) -> Rejection | None:
    """Rejects a turn for the first limit that it breaks; None if it breaks none. Missing measures break no limit.

    Args:
        score: of the turn; None before it is measured.
        rates: of the turn's source; None: `max_chars_z` is not checked.
    """
    seconds = turn.end - turn.start
    rate = _rate(turn) if seconds > 0 else None
    z = (rate - rates.median) / rates.deviation if rates is not None and rate is not None else None
    bounds: list[tuple[Reason, str, float | None, float | None, float | None]] = [
        # reason, measure, value, minimum, maximum
        (Reason.too_short, "seconds", seconds, limits.min_seconds, None),
        (Reason.too_long, "seconds", seconds, None, limits.max_seconds),
        (Reason.language, "probability of its language", turn.lang_prob, limits.min_lang_prob, None),
        (Reason.asr_confidence, "mean log probability", turn.avg_logprob, limits.min_avg_logprob, None),
        (Reason.compression, "compression ratio", turn.compression_ratio, None, limits.max_compression_ratio),
        (Reason.no_speech, "probability of no speech", turn.no_speech_prob, None, limits.max_no_speech_prob),
        (Reason.speech_rate, "characters/s", rate, limits.min_chars_per_second, limits.max_chars_per_second),
        (Reason.speech_rate, "distance of characters/s from the source's median, in deviations,",
         None if z is None else abs(z), None, limits.max_chars_z),
    ]  # fmt: skip
    if score is not None:
        bounds += [
            (Reason.quality, "DNSMOS OVRL", score.ovrl, limits.min_ovrl, None),
            (Reason.quality, "DNSMOS SIG", score.sig, limits.min_sig, None),
            (Reason.quality, "DNSMOS BAK", score.bak, limits.min_bak, None),
            (Reason.quality, "share with music", score.music, None, limits.max_music),
            (Reason.clipping, "share of clipped samples", score.clipped, None, limits.max_clipped),
            (Reason.bandwidth, "bandwidth in Hz", score.bandwidth, limits.min_bandwidth, None),
            (Reason.text_mismatch, f"character error rate of its text (heard: {shortened(score.heard or '')!r})",
             score.cer, None, limits.max_cer),
            (Reason.speaker, "similarity of the voices of its halves", score.half_similarity,
             limits.min_half_similarity, None),
            (Reason.speaker, "similarity of its voice to its speaker's other turns", score.speaker_similarity,
             limits.min_speaker_similarity, None),
        ]  # fmt: skip
    for reason, what, value, least, most in bounds:
        if value is None:
            continue
        if least is not None and value < least:
            return Rejection(turn=turn.number, reason=reason, message=f"{what} {value:.4g} is below {least:g}")
        if most is not None and value > most:
            return Rejection(turn=turn.number, reason=reason, message=f"{what} {value:.4g} is above {most:g}")
    if turn.avg_logprob is None:  # the text was given: what recognizers make up is no measure of it
        return None
    if limits.repetition and (found := repetition(turn.text)):
        return Rejection(turn=turn.number, reason=Reason.repetition, message=found)
    if limits.hallucination and seconds > 0:
        found = hallucination(turn.text, seconds, turn.lang, turn.no_speech_prob, turn.avg_logprob)
        if found:
            return Rejection(turn=turn.number, reason=Reason.hallucination, message=found)
    return None


def _rate(turn: DraftTurn) -> float:
    return chars_per_second(turn.text, turn.end - turn.start)


def _median(counts: Counter[int]) -> int:
    """The lower median."""
    below, half = 0, (counts.total() + 1) // 2
    for value in sorted(counts):
        below += counts[value]
        if below >= half:
            return value
    raise AssertionError("no values")
