"""The audio of a recording, decoded when it is first read, wherever its bytes lie."""

from __future__ import annotations

import numpy as np

from data_prep.records import Recording


class RecordingAudio:
    """Random access to a recording's samples at any rate; long recordings are kept in a temporary file."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def track(self, channel: int | None, rate: int, start: float = 0.0, end: float | None = None) -> np.ndarray:
        """Float32 [N] at `rate` Hz of a channel (None: the mean of all), from `start` to `end` seconds.

        Raises `Unusable` if the file is no audio, is damaged, or has no such channel.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Frees memory and the temporary file; reading again decodes again."""
