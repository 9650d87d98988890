"""Runs the stages on one unit. Idempotent: finished stages are skipped, however an earlier run ended.

Each stage writes to `<work>/units/<unit>/`, atomically,

    <stage>-<fingerprint>.parquet             a result for each recording
    <stage>-<fingerprint>.rejects.parquet     recordings rejected by the stage
    <stage>-<fingerprint>.json                the marker, written last: hashes of both files

and once all stages are done, `done.json` is written. A fingerprint covers the options and version of a stage and of
every stage it reads from, so that a change of options repeats exactly the stages that depend on them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_prep.audio.recording import RecordingAudio
from data_prep.execution.unit_files import Attempts, Failure, StageFiles, classify, write_json
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Recording, Rejection, StageTime
from data_prep.stages.base import Item, Stage

DONE_FILE = "done.json"
LOCK_FILE = "lock"
LOCK_SECONDS = 5.0  # a process that was just killed may not be gone yet
EXIT_TIMEOUT = 124
MIN_TIMEOUT_SECONDS = 600.0
MAX_FAILURES_IN_A_ROW = 5
"""Unexpected exceptions of one stage, without a success between them, after which the run ends: the cause is not the
recordings."""

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the seconds of audio it has processed."""


@dataclass
class UnitReport:
    """The outcome of a unit; small, since it is sent between processes and machines."""

    unit: str
    recordings: int
    seconds: float
    repeated: list[str]  # stages that ran now; the others were done before
    rejected: dict[Reason, int]  # reason -> recordings, over all stages


class UnitLocked(RuntimeError):
    """Another process is working on the unit."""


def fingerprints(stages: Sequence[Stage]) -> dict[str, str]:
    """Stage name -> 12 hex digits, a hash of its options and version and those of all stages it depends on.

    The option `device` is excluded, since it does not affect results: units that ran on a GPU count as done for a
    `pack` on a machine without one.
    """
    found: dict[str, str] = {}
    for stage in stages:
        values = {name: value for name, value in asdict(stage.options).items() if name != "device"}
        options = json.dumps(values, sort_keys=True, default=str)
        own = [stage.name, str(stage.version), options, *(found[name] for name in stage.reads)]
        found[stage.name] = hashlib.sha256("\n".join(own).encode()).hexdigest()[:12]
    return found


@dataclass(frozen=True)
class StageTable:
    """The identity and result type of a stage, without its models."""

    stage: str
    fingerprint: str
    result: type


def stage_tables(stages: Sequence[Stage]) -> list[StageTable]:
    current = fingerprints(stages)
    return [StageTable(stage.name, current[stage.name], stage.result) for stage in stages]


def unit_folder(work: Path, unit: str) -> Path:
    return work / "units" / unit


def is_done(work: Path, unit: str, stage_fingerprints: dict[str, str]) -> bool:
    """Whether the unit is done with stages of these fingerprints."""
    done = unit_folder(work, unit) / DONE_FILE
    return done.is_file() and json.loads(done.read_text())["stages"] == stage_fingerprints


@dataclass
class UnitResults:
    """The results of all stages for a unit."""

    results: dict[str, dict[str, Any]]  # stage -> recording id -> result
    rejections: list[Rejection]  # of whole recordings
    times: list[StageTime]


def unit_results(work: Path, unit: str, tables: Sequence[StageTable]) -> UnitResults:
    """Of a unit that is done with these stages. Raises FileNotFoundError or ValueError if a table is gone or bad."""
    found = UnitResults({}, [], [])
    for table in tables:
        files = StageFiles(unit_folder(work, unit), table.stage, table.fingerprint, table.result)
        found.results[table.stage], rejections, took = files.read()
        found.rejections += rejections
        found.times.append(took)
    return found


def run_unit(
    work: Path,
    unit: str,
    recordings: Sequence[Recording],
    stages: Sequence[Stage],
    max_attempts: int = 3,
    timeout_factor: float = 20.0,
    progress: Progress = lambda stage, seconds: None,
) -> UnitReport:
    """Runs the stages of `unit` that are not done.

    Raises:
        UnitLocked: another process is working on it.
        OSError, RuntimeError: the disk is full, the device is dead, or a stage fails for every recording.
    """
    folder = unit_folder(work, unit)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK_FILE, timeout=LOCK_SECONDS):
            return _Run(folder, unit, recordings, stages, max_attempts, timeout_factor, progress).run()
    except Timeout as error:
        raise UnitLocked(f"{folder}: another process is working on this unit") from error


class _Run:
    def __init__(
        self,
        folder: Path,
        unit: str,
        recordings: Sequence[Recording],
        stages: Sequence[Stage],
        max_attempts: int,
        timeout_factor: float,
        progress: Progress,
    ) -> None:
        self.folder, self.unit, self.recordings, self.stages = folder, unit, recordings, stages
        self.max_attempts, self.timeout_factor, self.progress = max_attempts, timeout_factor, progress
        self.attempts = Attempts(folder)
        self.suspects = {name for name, count in self.attempts.unended.items() if count > 0}
        self.failures_in_a_row = 0

    def run(self) -> UnitReport:
        seconds = sum(recording.seconds for recording in self.recordings)
        report = UnitReport(self.unit, len(self.recordings), seconds, [], {})
        current = fingerprints(self.stages)
        alive = list(self.recordings)
        results: dict[str, dict[str, Any]] = {}
        for stage in self.stages:
            files = StageFiles(self.folder, stage.name, current[stage.name], stage.result)
            if not files.complete():
                start, cpu = time.perf_counter(), time.process_time()
                found, rejections = self._run_stage(stage, alive, results)
                wall, used = time.perf_counter() - start, time.process_time() - cpu
                audio = sum(recording.seconds for recording in alive)
                took = StageTime(stage.name, self.unit, stage.backend, len(alive), audio, wall, used, stage.device)
                files.write(found, rejections, took)
                report.repeated.append(stage.name)
            else:
                self.progress(stage.name, sum(recording.seconds for recording in alive))
            results[stage.name], rejections, _ = files.read()
            for rejection in rejections:
                report.rejected[rejection.reason] = report.rejected.get(rejection.reason, 0) + 1
            self.progress(stage.name, sum(r.seconds for r in self.recordings) - sum(r.seconds for r in alive))
            alive = [recording for recording in alive if recording.id in results[stage.name]]
        write_json(self.folder / DONE_FILE, {"unit": self.unit, "stages": current})
        return report

    def _run_stage(
        self, stage: Stage, recordings: Sequence[Recording], results: dict[str, dict[str, Any]]
    ) -> tuple[dict[str, Any], list[Rejection]]:
        found: dict[str, Any] = {}
        rejections: list[Rejection] = []
        for group in self._groups(stage, recordings):
            items = [
                Item(recording, RecordingAudio(recording), {name: results[name][recording.id] for name in stage.reads})
                for recording in group
            ]
            try:
                self._try(stage, items, found, rejections)
            finally:
                for item in items:
                    item.audio.close()
            self.progress(stage.name, sum(recording.seconds for recording in group))
        return found, rejections

    def _groups(self, stage: Stage, recordings: Sequence[Recording]) -> Iterator[list[Recording]]:
        """Groups of recordings to process together; one that was started before but did not end is processed alone."""
        group: list[Recording] = []
        for recording in recordings:
            alone = recording.id in self.suspects
            seconds = sum(member.seconds for member in group) + recording.seconds
            if group and (alone or seconds > stage.group_seconds):
                yield group
                group = []
            group.append(recording)
            if alone:
                yield group
                group = []
        if group:
            yield group

    def _try(self, stage: Stage, items: list[Item], found: dict[str, Any], rejections: list[Rejection]) -> None:
        """Processes items together, or each alone if that fails."""
        names = [item.recording.id for item in items]
        alone = items[0].recording if len(items) == 1 else None
        if alone and self.attempts.unended[alone.id] >= self.max_attempts:
            reason = Reason.timeout if self.attempts.timeouts[alone.id] else Reason.crashed
            message = f"its worker died {self.attempts.unended[alone.id]} times; `retry` re-queues it"
            rejections.append(Rejection(reason=reason, message=message).located(alone, stage.name))
            return
        for attempt in range(1, self.max_attempts + 1):
            self.attempts.begin(names, stage.name)
            try:
                with self._watched(names, sum(item.recording.seconds for item in items)):
                    processed = stage.process(items)
            except Exception as error:
                self.attempts.end(names)
                if not isinstance(error, RejectedRecording) and classify(error) is Failure.fatal:
                    raise
                if alone is None:
                    for item in items:
                        self._try(stage, [item], found, rejections)
                    return
                if isinstance(error, RejectedRecording):
                    rejection = Rejection(reason=error.reason, message=error.message)
                    rejections.append(rejection.located(alone, stage.name))
                    return
                if classify(error) is Failure.transient and attempt < self.max_attempts:
                    print(f"{alone.id}: {stage.name}: {error!r}; retrying", file=sys.stderr)
                    time.sleep(2.0 ** (attempt - 1))
                    continue
                self._note_failure(stage, alone, error)
                message = f"{type(error).__name__}: {error} (attempt {attempt}); `retry` re-queues it"
                rejections.append(Rejection(reason=Reason.failed, message=message).located(alone, stage.name))
                return
            self.attempts.end(names)
            self.failures_in_a_row = 0
            found.update(zip(names, processed, strict=True))
            return

    def _note_failure(self, stage: Stage, recording: Recording, error: Exception) -> None:
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RuntimeError(
                f"stage {stage.name} ({stage.backend}) failed for {self.failures_in_a_row} recordings in a row, last "
                f"{recording.id}: {type(error).__name__}: {error}"
            ) from error

    @contextmanager
    def _watched(self, names: list[str], seconds: float) -> Iterator[None]:
        """Exits the process if the block takes too long: library code that hangs cannot be stopped otherwise."""
        limit = max(MIN_TIMEOUT_SECONDS, self.timeout_factor * seconds)

        def end() -> None:
            self.attempts.timeout(names)
            print(f"{', '.join(names)}: took more than {limit:.0f} s; exiting", file=sys.stderr, flush=True)
            os._exit(EXIT_TIMEOUT)

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
