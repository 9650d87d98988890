"""The original audio of the conversations of a dataset, found through the plan it was prepared from."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample
from data_prep.audio.recording import RecordingAudio, recording_of
from data_prep.inputs.plan_files import PLAN_FILE, load_plan
from data_prep.inputs.probe import probe
from data_prep.reasons import RejectedRecording
from data_prep.records import Locator, Recording


@dataclass
class Original:
    """The recording of a conversation with its audio, or the reason why there is none."""

    recording: Recording | None
    message: str = ""
    audio: RecordingAudio | None = None


class Originals:
    """Looks recordings up in the plan in `work`, or without one by the path that samples keep.

    The last one stays decoded: conversations are best asked for in the order of `by_recording`.
    """

    def __init__(self, dataset: ShardedDataset, work: Path) -> None:
        self._dataset = dataset
        self._plan = load_plan(work) if (work / PLAN_FILE).is_file() else None
        self._last: tuple[str, Original] | None = None

    def of(self, sample: Sample) -> Original:
        if self._last is None or self._last[0] != sample.recording:
            self.close()
            found = self._find(sample)
            found.audio = RecordingAudio(found.recording) if found.recording is not None else None
            self._last = (sample.recording, found)
        return self._last[1]

    def close(self) -> None:
        """Frees the decoded audio."""
        if self._last is not None and self._last[1].audio is not None:
            self._last[1].audio.close()

    def _find(self, sample: Sample) -> Original:
        if self._plan is not None:
            try:
                return Original(self._plan.recording(sample.recording))
            except KeyError:
                return Original(None, "it is not in the plan of the work folder")
        path = self._dataset.audio_path(sample)
        if path is None or not path.is_file():
            return Original(None, f"there is no plan in the work folder, and no file {path}")
        found = probe(Locator(str(path)), path.name)
        if found.reason is not None:
            return Original(None, found.message or str(found.reason))
        recording = replace(
            recording_of(sample, path),
            seconds=found.seconds,
            sample_rate=found.sample_rate,
            channels=found.channels,
        )
        return Original(recording)


def by_recording(dataset: ShardedDataset, chosen: Iterable[int]) -> list[int]:
    """Numbers of conversations, those of a recording one after another, by key: in the order in which they are said."""
    recordings, keys = dataset.column("recording"), dataset.column("key")
    return sorted(chosen, key=lambda number: (recordings[number], keys[number]))


def flac(audio: RecordingAudio, channels: list[int] | None, start: float, end: float | None) -> bytes:
    """A stretch of a recording as FLAC of 16 bits at the recording's rate; channels None: mixed to one.

    Raises `RejectedRecording` or OSError if it cannot be read, or written.
    """
    wanted: list[int | None] = [*channels] if channels else [None]
    tracks = [audio.track(channel, audio.rate, start, end) for channel in wanted]
    file = io.BytesIO()
    try:
        soundfile.write(file, np.clip(np.stack(tracks, axis=1), -1, 1), audio.rate, "PCM_16", format="FLAC")
    except soundfile.LibsndfileError as error:  # of more than 8 channels
        name = audio.recording.audio
        raise OSError(
            f"{name}: {len(tracks)} channels of {audio.rate} Hz cannot be written as FLAC ({error})"
        ) from error
    return file.getvalue()


def channels_of(sample: Sample) -> list[int] | None:
    """The channels on which a conversation's turns are, from 0; None: they are on the mix of all."""
    found = {turn.channel for turn in sample.turns}
    return None if None in found else list(range(max(channel for channel in found if channel is not None) + 1))


UNREADABLE = (RejectedRecording, OSError)
