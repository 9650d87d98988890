"""The sides of a two-channel call: whether each channel has its own speaker, and where it carries the other voice.

Everything is told from the levels of frames, whose length is that of the voice activity detector.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter1d

from csm.judges.silero import FRAME, RATE

DOMINANT = 4.0
"""Least ratio of power (6 dB) between a speaker's channel and the other one, in a frame of speech."""
DOMINATED_SHARE = 0.6
"""Least share of a call's frames of speech that have a dominant channel; a stereo mix has voices on both."""
OTHER_SHARE = 0.01
"""Least share of the frames of speech in which each channel of a call dominates: both sides are heard."""
ECHO_DB = 20.0
"""Difference of level above which the weaker channel of a call always carries only the echo of the other."""
LEAK_MARGIN_DB = 4.0
"""How much closer than its usual leak another voice may come to a channel's level and still be taken for the leak."""
MAX_DELAY_SECONDS = 1.0
"""Latest echo that is looked for."""
LEAST_CORRELATION = 0.2
"""Of the level's changes on one channel with earlier ones on the other, for them to be an echo: in made calls those
without an echo had up to 0.12, and those with one of -7 to -30 dB 0.21 and more."""
LEAST_DEVIATIONS = 5.0
"""The same in standard deviations of the correlation of unrelated changes, which decides in calls below half a minute:
in made calls of 5 s, 1 % of the channels without an echo had more, and three quarters of those with one."""
_FLOOR = 1e-8  # mean square at and below which a channel is silent: -80 dBFS
_FLOOR_DB = 10 * np.log10(_FLOOR)
_DOMINANT_DB = 10 * np.log10(DOMINANT)
_NEAR_FRAMES = 11  # 0.35 s, over which the channels' peaks are compared: delays vary, and rooms resound


def are_two_speakers(power: np.ndarray, speech: np.ndarray) -> bool:
    """Whether two channels carry one speaker each.

    Args:
        power: mean square of each channel's frames, float [2, F].
        speech: whether somebody speaks in each frame, bool [2, F].
    """
    frames = int(speech.any(axis=0).sum())
    ratio = (power[0] + _FLOOR) / (power[1] + _FLOOR)
    first = int((speech[0] & (ratio > DOMINANT)).sum())
    second = int((speech[1] & (ratio < 1 / DOMINANT)).sum())
    return first + second > DOMINATED_SHARE * frames and min(first, second) > OTHER_SHARE * frames


def is_leak(power: np.ndarray, speech: np.ndarray) -> np.ndarray:
    """Frames in which a channel of a call carries only the other side's voice, bool [2, F].

    For each channel it is estimated how late the other side's voice comes (`echo_delay`), and how much weaker than on
    its own channel: the most frequent difference of the levels while the other one speaks and is louder. Frames with
    nearly that difference, or a larger one, are silenced; but none with less than 6 dB (or `are_two_speakers` would not
    have told the sides apart), and all from 20 dB on.

    Args:
        power: mean square of each channel's frames, float [2, F].
        speech: whether somebody speaks in each frame, bool [2, F].
    """
    level = 10 * np.log10(power + _FLOOR)
    near = maximum_filter1d(level, _NEAR_FRAMES, axis=1)
    found = np.zeros(speech.shape, bool)
    for channel in (0, 1):
        delay = echo_delay(level[channel], level[1 - channel])
        louder = _later(near[1 - channel], delay, _FLOOR_DB) - near[channel]
        leaked = louder[_later(speech[1 - channel], delay, False) & (louder > _DOMINANT_DB / 2)]
        if not len(leaked):
            continue
        counts = np.bincount(leaked.astype(int))  # by dB
        usual = float(np.convolve(counts, np.ones(3), "same").argmax()) + 0.5
        found[channel] = louder > np.clip(usual - LEAK_MARGIN_DB, _DOMINANT_DB, ECHO_DB)
    return found


def echo_delay(level: np.ndarray, other: np.ndarray) -> int:
    """Frames after which the other side's voice is heard on a channel; 0 if it is not heard there.

    The changes of the channel's level, while the other side is or has just been louder, follow the other's changes.

    Args:
        level: of the channel in dB, float [F].
        other: the same of the other channel.
    """
    frames = round(MAX_DELAY_SECONDS * RATE / FRAME) + 1
    recent = maximum_filter1d(other, frames, origin=(frames - 1) // 2)  # the highest of this frame and those before
    listens = recent - level > _DOMINANT_DB
    heard = np.diff(level, prepend=level[0])[listens]
    said = np.diff(other, prepend=other[0])
    correlation = np.zeros(min(frames, len(level)))
    for delay in range(len(correlation)):
        late = _later(said, delay, 0.0)[listens]
        norm = float(np.linalg.norm(late) * np.linalg.norm(heard))
        correlation[delay] = heard @ late / norm if norm else 0.0
    best = int(correlation.argmax())
    chance = LEAST_DEVIATIONS / np.sqrt(max(1, int(listens.sum())))
    return best if correlation[best] >= max(LEAST_CORRELATION, chance) else 0


def _later(frames: np.ndarray, delay: int, before: float) -> np.ndarray:
    """Frames as many frames later, of the same number; `before` is what precedes them."""
    return np.concatenate([np.full(delay, before, frames.dtype), frames[: len(frames) - delay]])
