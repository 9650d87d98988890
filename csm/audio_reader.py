"""Readers of audio: what every decoder gives, and files that were joined, each read by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr

from csm.audio_bytes import Fault, UnreadableAudio


@dataclass
class Header:
    """Properties of an audio file, as its header gives them."""

    sample_rate: int
    channels: int
    codec_format: str  # container/codec: "wav/pcm_16", "mov/aac"; "mp3"
    samples: int | None  # of each channel; None: not in the header, or unreliable


class AudioReader(Protocol):
    """An open audio file. Both methods raise `UnreadableAudio` for damaged audio, OSError for failing storage."""

    header: Header
    skips: bool
    """Whether `blocks` skips what is before its `start` without decoding it, and may be called again."""

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yields all samples from `start` on, or up to `stop`, in order, in blocks of float32 [n, C] with n > 0.

        Up to `start`, formats without loss are skipped, others decoded, once (see `skips`). Behind `stop` nothing is
        read. There may be fewer or more samples than the header says. A file that ends too early raises
        `UnreadableAudio` only after its last block.
        """
        ...

    def count(self) -> int:
        """Samples of each channel, from the header or else from the headers of all packets.

        Decodes nothing, except of joined files; to be called instead of `blocks`.
        """
        ...


class Part(AudioReader, Protocol):
    """A file that others may precede."""

    before: float
    """Seconds before it, which are added to the times of its errors."""


class JoinedReader:
    """Files that follow each other, at the rate of the first one; `label` is for messages.

    cut: whether there is the beginning of another file, without audio; it is an error behind the audio, as in others
        that are cut off
    """

    skips = False

    def __init__(self, label: str, parts: list[Part], cut: bool) -> None:
        """Raises `UnreadableAudio` if they have different numbers of channels."""
        self._label, self._parts, self._cut = label, parts, cut
        first = parts[0].header
        self.header = Header(first.sample_rate, first.channels, first.codec_format, None)
        if any(part.header.channels != first.channels for part in parts):
            message = f"{label}: several files in one, not all of which have {first.channels} channels; divide it"
            raise UnreadableAudio(Fault.audio_corrupt, message)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return between(self._blocks(), start, stop)

    def _blocks(self) -> Iterator[np.ndarray]:
        before, rate = 0.0, self.header.sample_rate
        for part in self._parts:
            part.before = before
            for block in self._resampled(part):
                before += len(block) / rate
                yield block
        if self._cut:
            message = f"{self._label}: the file is cut off after {before:.2f} s, where another one begins"
            raise UnreadableAudio(Fault.audio_truncated, message)

    def _resampled(self, part: Part) -> Iterator[np.ndarray]:
        if part.header.sample_rate == self.header.sample_rate:
            yield from part.blocks()
            return
        convert = soxr.ResampleStream(part.header.sample_rate, self.header.sample_rate, self.header.channels)
        for block in part.blocks():
            yield from _filled(convert.resample_chunk(block))
        yield from _filled(convert.resample_chunk(np.zeros((0, self.header.channels), np.float32), last=True))

    def count(self) -> int:
        rate = self.header.sample_rate
        return sum(round(part.count() * rate / part.header.sample_rate) for part in self._parts)


def _filled(block: np.ndarray) -> Iterator[np.ndarray]:
    if len(block):
        yield block.reshape(len(block), -1)


def between(blocks: Iterator[np.ndarray], start: int, stop: int | None) -> Iterator[np.ndarray]:
    """The samples `start` to `stop` of all blocks; nothing behind `stop` is read."""
    place = 0
    if stop is not None and stop <= start:
        return
    for block in blocks:
        place += len(block)
        if place > start:
            found = block[max(0, len(block) - (place - start)) :]
            yield found if stop is None or place <= stop else found[: len(found) - (place - stop)]
        if stop is not None and place >= stop:
            return
