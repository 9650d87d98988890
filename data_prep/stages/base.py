"""The interface of stages, each of which adds one result to those of a recording.

A stage knows nothing of files, units, retries or processes: `data_prep/execution/unit.py` gives it recordings, keeps
its results, and repeats it only when its fingerprint, or that of a stage it reads from, has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from data_prep.audio.recording import RecordingAudio
from data_prep.records import Recording

Result = TypeVar("Result")


@dataclass
class Item:
    """A recording on its way through the stages."""

    recording: Recording
    audio: RecordingAudio  # decoded when first read
    results: dict[str, Any]  # stage name -> its result, of the stages in `Stage.reads`


class Stage(Protocol, Generic[Result]):
    """A stage with its backend and options; models are loaded when they are first used."""

    name: str
    version: int  # incremented when the same options give other results than before
    result: type[Result]  # a dataclass of records.py
    options: Any  # dataclass of everything that the results depend on
    backend: str  # for reports
    device: str
    group_seconds: float  # audio to be processed together at most; 0: one recording at a time

    @property
    def reads(self) -> tuple[str, ...]:
        """Earlier stages whose results it needs."""
        ...

    def process(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in order, which does not depend on the other items.

        Raises `RejectedRecording` for a recording of which nothing can be used (with several items, the caller then
        tries each alone); any other exception is a failure, classified by `data_prep/execution/unit_files.py`.
        """
        ...
