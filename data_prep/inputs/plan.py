"""The command `plan`: lists and probes the recordings of all sources and divides them into units.

The result depends on the contents of the sources, not on the order in which they are read.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from csm.progress import TerminalProgress
from data_prep.config import DataPrepConfig, SourceConfig, TranscribeBackend, work_folder
from data_prep.inputs.files import check_exists
from data_prep.inputs.notes import Notes
from data_prep.inputs.plan_files import PLAN_FILE, Plan, load_plan, write_plan
from data_prep.inputs.probe import Probe, ProbeCache, Stamps, probe
from data_prep.inputs.sources import STAGE, read_source
from data_prep.inputs.understood import understand
from data_prep.inputs.units import cut_units, digest_of, unit_seconds
from data_prep.reasons import Reason
from data_prep.records import Recording, Rejection

__all__ = ["Plan", "load_plan", "make_plan"]

log = logging.getLogger(__name__)

_SOURCE_NAME = re.compile(r"[\w.-]+", re.ASCII)
_BATCH = 4096  # files submitted to the threads at once


def make_plan(cfg: DataPrepConfig) -> Plan:
    """Lists and probes all sources, and writes the plan to the work folder unless the same plan is there already.

    Raises:
        FileNotFoundError: there is no such input.
        ValueError: a manifest is malformed, an option is invalid, no recording can be used, the work folder holds
            a plan of other recordings or options and `plan.update` is not set, or `plan.strict` is and anything of a
            source is not used. Annotations that were corrected are no reason: the units that hold them are planned
            again.
        OSError: listing fails. (A file that cannot be read is rejected as `failed`.)
    """
    work, options = work_folder(cfg), _options(cfg)
    before = load_plan(work) if (work / PLAN_FILE).is_file() else None
    if before and before.options != options:
        changed = [f"{name}={value}" for name, value in before.options.items() if options.get(name) != value]
        raise ValueError(f"{work}: was planned with {', '.join(changed)}; keep that, or use another work=...")
    listed, rejections, notes = _list(cfg)
    usable = _probe_all(cfg, work / "probed", listed, rejections)
    known = _known(before)
    recordings = _with_splits_of_groups(_without_duplicates(usable, set(known), rejections))
    understood = understand(notes, recordings, rejections, cfg.transcribe.backend is not TranscribeBackend.none)
    losses = [f"{source.source}: {line}" for source in understood for line in source.losses()]
    if cfg.plan.strict and losses:
        raise ValueError(f"plan.strict: {'; '.join(losses)}")
    digests = {recording.id: digest_of(recording) for recording in recordings}
    # a planned recording that has become unusable is rejected by the stage that reads it
    rejections = [rejection for rejection in rejections if rejection.recording not in known]
    rejections.sort(key=lambda rejection: (rejection.recording, rejection.reason))
    differing = [
        recording for recording in recordings if known.get(recording.id, digests[recording.id]) != digests[recording.id]
    ]
    if before:
        difference = _difference(before, known, digests, rejections)
        if difference and not cfg.plan.update and not _only_corrected(before, difference, differing):
            raise ValueError(
                f"{work}: holds a plan of other recordings ({difference}); use another work=..., or plan.update=true "
                "to plan only what is new or changed"
            )
    new = [recording for recording in recordings if recording.id not in known]
    plan: Plan
    if before and not new and not differing and _pairs(rejections) == _pairs(before.rejections):
        plan = before
    elif not before and not new:
        raise ValueError(_nothing(rejections))
    else:
        again = _again(before, differing) if before else {}
        to_plan = new + [recording for members in again.values() for recording in members]
        digests |= {recording.id: digest_of(recording) for recording in to_plan}
        seconds = unit_seconds(sum(recording.seconds for recording in to_plan), cfg.plan.unit_hours * 3600)
        units = list(cut_units(to_plan, digests, seconds))
        plan = write_plan(work, units, rejections, options, before, list(again))
    for source in understood:
        if source.warning():
            log.warning("%s: not all of it is used: %s", source.source, source.warning())
    plan.understood, plan.corrected = understood, [recording.id for recording in differing]
    return plan


def _only_corrected(before: Plan, difference: str, changed: list[Recording]) -> bool:
    """Whether nothing differs but annotations: all files are planned already, and their bytes are the same."""
    if not changed or not difference.startswith(f"0 new recordings, 0 gone, {len(changed)} changed, such as"):
        return False
    return all(before.recording(recording.id).sha256 == recording.sha256 for recording in changed)


def _again(before: Plan, changed: list[Recording]) -> dict[str, list[Recording]]:
    """Units that hold changed recordings -> their recordings as they are now. These units are planned again."""
    now = {recording.id: recording for recording in changed}
    units = sorted({row["unit"] for row in before.columns("id", "unit") if row["id"] in now})
    return {unit: [now.get(old.id, old) for old in before.recordings(unit)] for unit in units}


def _options(cfg: DataPrepConfig) -> dict[str, Any]:
    """Options that must be the same for all parts of a plan."""
    return {f"plan.{name}": getattr(cfg.plan, name) for name in ("unit_hours", "min_seconds", "max_hours")}


def _sources(cfg: DataPrepConfig) -> dict[str, SourceConfig]:
    if bool(cfg.sources) == (cfg.input is not None):
        raise ValueError("give either input=PATH, or +sources={NAME: {input: PATH}, ...}")
    sources = dict(cfg.sources)
    if cfg.input is not None:
        sources[cfg.source] = SourceConfig(input=cfg.input, lang=cfg.lang, licence=cfg.licence, format=cfg.format)
    for name in sources:
        if not _SOURCE_NAME.fullmatch(name):
            raise ValueError(f"source {name!r}: a name must consist of letters, digits, _, - and .")
    return sources


def check_inputs(cfg: DataPrepConfig) -> None:
    """Raises ValueError or FileNotFoundError for sources that are not named, or not there, before any is listed."""
    for source in _sources(cfg).values():
        check_exists(source.input)


def _list(cfg: DataPrepConfig) -> tuple[list[Recording], list[Rejection], dict[str, Notes]]:
    """All recordings by source and id, not yet probed, the rejections of the listing, and the notes of each source."""
    listed: list[Recording] = []
    rejections: list[Rejection] = []
    notes: dict[str, Notes] = {}
    for name, source in sorted(_sources(cfg).items()):
        notes[name] = Notes()
        found = sorted(read_source(name, source, notes[name]), key=_id)
        for entry in found[: cfg.limit]:
            if isinstance(entry, Rejection):
                rejections.append(entry)
            else:
                listed.append(entry)
    return listed, rejections, notes


def _id(entry: Recording | Rejection) -> str:
    return entry.recording if isinstance(entry, Rejection) else entry.id


def _probe_all(
    cfg: DataPrepConfig, folder: Path, listed: list[Recording], rejections: list[Rejection]
) -> list[Recording]:
    """The usable recordings, in order, with the properties of their files; others are added to `rejections`."""
    usable = []
    cache, stamps = ProbeCache(folder), Stamps()

    def probe_cached(recording: Recording) -> Probe:
        key = stamps.key(recording.locator, recording.audio)
        return cache.get(key) or probe(recording.locator, recording.audio, key)

    with ThreadPoolExecutor(cfg.plan.workers or os.cpu_count()) as pool, _progress() as progress:
        task = progress.add_task("Planning", total=len(listed), hours=0.0)
        try:
            for recording, found in zip(listed, _map(pool, probe_cached, listed), strict=True):
                cache.add(found)
                progress.update(task, advance=1, hours=progress.tasks[task].fields["hours"] + found.seconds / 3600)
                recording = replace(
                    recording,
                    sha256=found.sha256,
                    seconds=found.seconds,
                    sample_rate=found.sample_rate,
                    channels=found.channels,
                    codec_format=found.codec_format,
                )
                problem = _problem(found, cfg)
                if problem:
                    rejections.append(_rejection(recording, *problem))
                else:
                    usable.append(recording)
        finally:
            cache.flush()
    return usable


def _map(pool: ThreadPoolExecutor, call: Callable[[Recording], Probe], listed: list[Recording]) -> Iterator[Probe]:
    """Results in order, of which at most one batch waits to be consumed."""
    for first in range(0, len(listed), _BATCH):
        yield from pool.map(call, listed[first : first + _BATCH])


def _problem(found: Probe, cfg: DataPrepConfig) -> tuple[Reason, str] | None:
    if found.reason:
        return found.reason, found.message or ""
    if found.seconds < cfg.plan.min_seconds:
        message = f"{found.seconds:.3f} s are less than plan.min_seconds={cfg.plan.min_seconds}"
        return Reason.recording_too_short, message
    if found.seconds > cfg.plan.max_hours * 3600:
        message = f"{found.seconds / 3600:.2f} hours are more than plan.max_hours={cfg.plan.max_hours}"
        return Reason.recording_too_long, message
    return None


def _rejection(recording: Recording, reason: Reason, message: str) -> Rejection:
    """Rejection of a whole recording, with its length as times if that is known."""
    rejection = Rejection(reason=reason, message=message).located(recording, STAGE)
    return replace(rejection, start=0.0, end=recording.seconds) if recording.seconds else rejection


def _without_duplicates(recordings: list[Recording], known: set[str], rejections: list[Rejection]) -> list[Recording]:
    """Of files with equal bytes, keeps the one planned before, else the best annotated; rejects the others."""
    kept: dict[str, Recording] = {}
    for recording in sorted(recordings, key=lambda recording: (recording.id not in known, *_annotation(recording))):
        first = kept.setdefault(recording.sha256, recording)
        if first is not recording:
            other = "" if recording.turns in (None, first.turns) else ", whose annotation is used instead of this one's"
            rejections.append(_rejection(recording, Reason.duplicate_file, f"the same file as {first.id}{other}"))
    return list(kept.values())


def _with_splits_of_groups(recordings: list[Recording]) -> list[Recording]:
    """Recordings to which the data give no split take that of their group: "val" if any of it is for validation."""
    of_group: dict[str, str] = {}
    for recording in recordings:
        if recording.split is not None and of_group.get(recording.group) != "val":
            of_group[recording.group] = recording.split
    return [
        recording if recording.split else replace(recording, split=of_group.get(recording.group))
        for recording in recordings
    ]


def _annotation(recording: Recording) -> tuple[int, int, str]:
    """A key that sorts recordings with more texts first, then those with more turns, then by id."""
    turns = recording.turns or []
    return -sum(bool(turn.text) for turn in turns), -len(turns), recording.id


def _known(before: Plan | None) -> dict[str, str]:
    """Id -> digest of the recordings planned already."""
    return {row["id"]: row["digest"] for row in before.columns("id", "digest")} if before else {}


def _difference(before: Plan, known: dict[str, str], now: dict[str, str], rejections: list[Rejection]) -> str:
    """Difference of a plan to the current recordings, in words; "" if there is none. known, now: id -> digest."""
    changed = sorted(name for name in now.keys() & known.keys() if now[name] != known[name])
    counts = {
        "new": len(now.keys() - known.keys()),
        "gone": len(known.keys() - now.keys()),
        "changed": len(changed),
        "more rejected": len(_pairs(rejections) - _pairs(before.rejections)),
        "no longer rejected": len(_pairs(before.rejections) - _pairs(rejections)),
    }
    if not any(counts.values()):
        return ""
    words = [f"{counts['new']} new recordings", f"{counts['gone']} gone"]
    words += [f"{count} {word}" for word, count in list(counts.items())[2:] if count]
    return ", ".join(words) + (f", such as {changed[0]}" if changed else "")


def _pairs(rejections: list[Rejection]) -> set[tuple[str, Reason]]:
    return {(rejection.recording, rejection.reason) for rejection in rejections}


def _nothing(rejections: list[Rejection]) -> str:
    reasons = Counter(rejection.reason for rejection in rejections)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"no recording can be used ({counts}); the first: {rejections[0].recording}: {rejections[0].message}"


def _progress() -> TerminalProgress:
    return TerminalProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[hours]:.2f} hours"),
        TimeRemainingColumn(),
    )
