"""Voice activity by silero-vad: the ONNX "sequence" model, whose weights are part of the package."""

from __future__ import annotations

import numpy as np
import torch

from csm.judges.hub import ModelUnavailable

RATE = 16_000  # Hz, of the model
FRAME = 512
"""Samples at 16 kHz (32 ms) for which the model gives one probability."""
_CONTEXT = 64  # samples before a frame that the model sees with it
_FRAMES_AT_ONCE = 512  # per call, to bound its memory


class Silero:
    """The loaded model. Raises ModelUnavailable if its package is not installed."""

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            from silero_vad import load_silero_vad
        except ImportError as error:
            raise ModelUnavailable("silero-vad is not installed: pip install silero-vad") from error
        finally:
            torch.set_num_threads(threads)  # its import sets them to 1 for the whole process
        self.session = load_silero_vad(sequence=True, sampling_rate=RATE).session

    def stream(self) -> SileroStream:
        """State for a new track."""
        return SileroStream(self)


class SileroStream:
    """A track that is fed block by block, with the same result as all at once."""

    def __init__(self, model: Silero) -> None:
        self.session = model.session
        self.hidden = np.zeros((1, 1, 128), np.float32)
        self.cell = np.zeros((1, 1, 128), np.float32)
        self.context: np.ndarray = np.zeros(_CONTEXT, np.float32)

    def feed(self, block: np.ndarray) -> np.ndarray:
        """Speech probability of each frame, float32 [ceil(N / 512)], of the track's next N samples (16 kHz).

        N must be a multiple of 512 in all blocks but the last, which is padded with zeros.
        """
        frames = np.pad(block, (0, -len(block) % FRAME)).reshape(-1, FRAME)
        found = [np.zeros(0, np.float32)]
        for first in range(0, len(frames), _FRAMES_AT_ONCE):
            some = frames[first : first + _FRAMES_AT_ONCE]
            contexts = np.concatenate([self.context[None], some[:-1, -_CONTEXT:]])
            self.context = some[-1, -_CONTEXT:]
            inputs = {"input": np.concatenate([contexts, some], axis=1), "h": self.hidden, "c": self.cell}
            probabilities, self.hidden, self.cell = self.session.run(["speech_probs", "hn", "cn"], inputs)
            found.append(probabilities.reshape(-1))
        return np.concatenate(found)


def speech_spans(
    probabilities: np.ndarray,
    samples: int,
    *,
    threshold: float,
    min_speech_seconds: float,
    min_silence_seconds: float,
    pad_seconds: float,
) -> list[tuple[float, float]]:
    """Speech as (start, end) in seconds, in a track of `samples` (16 kHz) with the given frame probabilities."""
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    found = get_speech_timestamps_from_probs(
        probabilities,
        sampling_rate=RATE,
        threshold=threshold,
        min_speech_duration_ms=round(1000 * min_speech_seconds),
        min_silence_duration_ms=round(1000 * min_silence_seconds),
        speech_pad_ms=round(1000 * pad_seconds),
        audio_length_samples=samples,
    )
    return [(span["start"] / RATE, span["end"] / RATE) for span in found]
