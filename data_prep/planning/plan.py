"""`plan`: sources -> recordings, cut into units. The result depends on what the sources hold, not on any order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.config import DataPrepConfig, SourceConfig, work_folder
from data_prep.planning.plan_files import PLAN_FILE, Plan, load_plan, write_plan
from data_prep.planning.probe import Probe, ProbeCache, Stamps, probe
from data_prep.planning.units import Planned, cut_units, planned
from data_prep.reasons import Reason
from data_prep.records import Recording, Reject
from data_prep.sources import Listed, read_source
from data_prep.sources.listing import STAGE

__all__ = ["Plan", "load_plan", "make_plan"]

_SOURCE_NAME = re.compile(r"[\w.-]+", re.ASCII)
_BATCH = 4096  # files handed to the threads at once


def make_plan(cfg: DataPrepConfig) -> Plan:
    """Lists and probes all sources, and writes the plan to the work folder, unless the same plan is there already.

    Raises:
        FileNotFoundError: there is no such input.
        ValueError: a manifest breaks its format, an option has no sense, nothing can be used, or the work folder
            holds a plan of other recordings or options and `plan.update` is not set.
        OSError: listing fails. (A file that cannot be read is left out with reason `failed`.)
    """
    work, options = work_folder(cfg), _options(cfg)
    before = load_plan(work) if (work / PLAN_FILE).is_file() else None
    if before and before.options != options:
        changed = [f"{name}={value}" for name, value in before.options.items() if options.get(name) != value]
        raise ValueError(f"{work}: was planned with {', '.join(changed)}; keep that, or use another work=...")
    listed, rejects = _list(cfg)
    found = _probe_all(cfg, work / "probed", listed, rejects)
    known = _known(before)
    recordings = [planned(recording) for recording in _without_duplicates(found, set(known), rejects)]
    rejects = [reject for reject in rejects if reject.recording not in known]  # they are left out where they are used
    rejects.sort(key=lambda reject: (reject.recording, reject.reason))
    if before:
        difference = _difference(before, known, recordings, rejects)
        if difference and "changed" in difference:
            raise ValueError(f"{work}: holds a plan of other recordings ({difference}); use another work=...")
        if difference and not cfg.plan.update:
            raise ValueError(
                f"{work}: holds a plan of other recordings ({difference}); use another work=..., or plan.update=true "
                "to plan only the new ones"
            )
    new = [entry for entry in recordings if entry.recording.id not in known]
    if before and not new and _pairs(rejects) == _pairs(before.rejects()):
        return before
    if not before and not new:
        raise ValueError(_nothing(rejects))
    return write_plan(work, list(cut_units(new, cfg.plan.unit_hours * 3600)), rejects, options, before)


def _options(cfg: DataPrepConfig) -> dict[str, Any]:
    """What an added part of a plan must have in common with the plan."""
    return {f"plan.{name}": getattr(cfg.plan, name) for name in ("unit_hours", "min_seconds", "max_hours")}


def _sources(cfg: DataPrepConfig) -> dict[str, SourceConfig]:
    if bool(cfg.sources) == (cfg.input is not None):
        raise ValueError("give either input=PATH, or +sources={NAME: {input: PATH}, ...}")
    sources = cfg.sources or {cfg.source: SourceConfig(input=cfg.input, lang=cfg.lang, licence=cfg.licence)}
    for name in sources:
        if not _SOURCE_NAME.fullmatch(name):
            raise ValueError(f"source {name!r}: a name must consist of letters, digits, _, - and .")
    return sources


def _list(cfg: DataPrepConfig) -> tuple[list[Listed], list[Reject]]:
    """All recordings by source and id, and what the listing already shows to be unusable."""
    listed: list[Listed] = []
    rejects: list[Reject] = []
    for name, source in sorted(_sources(cfg).items()):
        entries = sorted(read_source(name, source), key=_id)
        for entry in entries[: cfg.limit]:
            (rejects if isinstance(entry, Reject) else listed).append(entry)
    return listed, rejects


def _id(entry: Listed | Reject) -> str:
    return entry.recording if isinstance(entry, Reject) else entry.id


def _probe_all(cfg: DataPrepConfig, folder: Path, listed: list[Listed], rejects: list[Reject]) -> list[Recording]:
    """Those that can be used, in order; the others are added to `rejects`."""
    usable = []
    cache, stamps = ProbeCache(folder), Stamps()

    def look(entry: Listed) -> Probe:
        key = stamps.key(entry.locator, entry.audio)
        return cache.get(key) or probe(entry.locator, entry.audio, key)

    with ThreadPoolExecutor(cfg.plan.workers or os.cpu_count()) as pool, _progress() as progress:
        task = progress.add_task("Planning", total=len(listed), hours=0.0)
        try:
            for entry, found in zip(listed, _map(pool, look, listed), strict=True):
                cache.add(found)
                progress.update(task, advance=1, hours=progress.tasks[task].fields["hours"] + found.seconds / 3600)
                problem = _problem(found, cfg)
                if problem:
                    rejects.append(_reject(entry, *problem, found.seconds))
                else:
                    usable.append(_recording(entry, found))
        finally:
            cache.flush()
    return usable


def _map(pool: ThreadPoolExecutor, look: Callable[[Listed], Probe], listed: list[Listed]) -> Iterator[Probe]:
    """In order, and never with more than a batch of results that wait to be taken."""
    for first in range(0, len(listed), _BATCH):
        yield from pool.map(look, listed[first : first + _BATCH])


def _problem(found: Probe, cfg: DataPrepConfig) -> tuple[str, str] | None:
    if found.reason:
        return found.reason, found.message or ""
    if found.seconds < cfg.plan.min_seconds:
        message = f"{found.seconds:.3f} s are less than plan.min_seconds={cfg.plan.min_seconds}"
        return Reason.recording_too_short.value, message
    if found.seconds > cfg.plan.max_hours * 3600:
        message = f"{found.seconds / 3600:.2f} hours are more than plan.max_hours={cfg.plan.max_hours}"
        return Reason.recording_too_long.value, message
    return None


def _recording(entry: Listed, found: Probe) -> Recording:
    return Recording(
        entry.id,
        entry.source,
        entry.audio,
        entry.locator,
        entry.group,
        entry.split,
        entry.lang,
        entry.licence,
        found.sha256,
        found.seconds,
        found.sample_rate,
        found.channels,
        found.codec_format,
        entry.turns,
        entry.two_channel,
    )


def _reject(entry: Listed | Recording, reason: str, message: str, seconds: float) -> Reject:
    times = (0.0, seconds) if seconds else (None, None)
    return Reject(entry.source, entry.id, entry.audio, None, STAGE, reason, message, *times)


def _without_duplicates(recordings: list[Recording], known: set[str], rejects: list[Reject]) -> list[Recording]:
    """Of files with equal bytes the one planned before, else the one whose id sorts first; others are rejected."""
    kept: dict[str, Recording] = {}
    for recording in sorted(recordings, key=lambda recording: (recording.id not in known, recording.id)):
        first = kept.setdefault(recording.sha256, recording)
        if first is not recording:
            message = f"the same file as {first.id}"
            rejects.append(_reject(recording, Reason.duplicate_file.value, message, recording.seconds))
    return list(kept.values())


def _known(before: Plan | None) -> dict[str, str]:
    """Id -> digest of what is planned already."""
    return {row["id"]: row["digest"] for row in before.columns("id", "digest")} if before else {}


def _difference(before: Plan, known: dict[str, str], recordings: list[Planned], rejects: list[Reject]) -> str:
    """In words; "" if there is none."""
    now = {entry.recording.id: entry.digest for entry in recordings}
    changed = sorted(name for name in now.keys() & known.keys() if now[name] != known[name])
    counts = {
        "new": len(now.keys() - known.keys()),
        "gone": len(known.keys() - now.keys()),
        "changed": len(changed),
        "more left out": len(_pairs(rejects) - _pairs(before.rejects())),
        "no longer left out": len(_pairs(before.rejects()) - _pairs(rejects)),
    }
    if not any(counts.values()):
        return ""
    words = [f"{counts['new']} new recordings", f"{counts['gone']} gone"]
    words += [f"{count} {word}" for word, count in list(counts.items())[2:] if count]
    return ", ".join(words) + (f", such as {changed[0]}" if changed else "")


def _pairs(rejects: list[Reject]) -> set[tuple[str, str]]:
    return {(reject.recording, reject.reason) for reject in rejects}


def _nothing(rejects: list[Reject]) -> str:
    counts = ", ".join(f"{reason} {n}" for reason, n in Counter(reject.reason for reject in rejects).most_common())
    return f"no recording can be used ({counts}); the first: {rejects[0].recording}: {rejects[0].message}"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[hours]:.2f} hours"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
