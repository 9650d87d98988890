"""`pack`: writes a dataset folder from the units of a finished run.

    units' tables -> duplicates and speech rates of the whole set -> for each unit: strict limits, conversations,
    ledger -> staging -> shuffled shards -> index.parquet, rejects, ledger, duplicates, stages -> dataset.json

No audio is read and nothing is encoded, so that changing limits and conversations takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csm.codec import CodecInfo, SpectralCodec
from csm.data.dataset import DatasetInfo
from csm.data.sample import Sample
from csm.files import sync
from csm.progress import track
from data_prep.config import DataPrepConfig, work_folder
from data_prep.dataset.index import CODEC_FILE, file_info, write_dataset_json
from data_prep.execution.pipeline import build_stages, run_codec
from data_prep.execution.processes import ordered_map
from data_prep.execution.unit import StageTable, UnitResults, fingerprints, is_done, stage_tables, unit_results
from data_prep.inputs.plan import Plan, load_plan
from data_prep.packing.conversation import EncodedRecording, conversations, split_of, stage_rejections
from data_prep.packing.dedup import HeardRecording, HeardTurn, duplicates
from data_prep.packing.ledger import account
from data_prep.packing.output import output_folder
from data_prep.packing.shards import write_shards
from data_prep.packing.staging import StagedUnit
from data_prep.records import (
    UNKNOWN_LANGUAGE,
    ComparedText,
    Duplicate,
    LedgerRow,
    Recording,
    Rejection,
    Scores,
    StageTime,
    Turns,
)
from data_prep.speech.limits import RateCounts, SourceRates, check
from data_prep.stages.base import Stage
from data_prep.tables import from_dict, read_rows, schema_of, write_rows

REJECTS_FILE = "rejects.parquet"
LEDGER_FILE = "ledger.parquet"
DUPLICATES_FILE = "duplicates.parquet"
STAGES_FILE = "stages.parquet"
TEXTS_FILE = "texts.parquet"  # only if given texts were compared with the sound
_STAGING = "staging"
_UNIT_BYTES = 1000  # of stage results for a second of audio, about
_STAGE = "pack"  # of rejections made here


def pack(cfg: DataPrepConfig) -> DatasetInfo:
    """Writes the dataset `cfg.output`; all units must be done with the options of `cfg`.

    Raises:
        FileNotFoundError: there is no plan, or no codec.
        ValueError: units are not done, the output exists, or nothing is kept.
    """
    work = work_folder(cfg)
    plan = load_plan(work)
    codec = run_codec(cfg)
    stages = build_stages(cfg, codec)
    _check_done(work, plan, stages)
    tables = stage_tables(stages)
    units = [unit.id for unit in plan.units]
    repeated, rates = _measure_whole_set(cfg, plan, tables, units)
    prep = prep_hash(cfg, stages)
    with output_folder(Path(cfg.output), cfg.overwrite) as folder:
        codec_file = None
        if isinstance(codec, SpectralCodec):
            codec.save(folder / CODEC_FILE)
            sync(folder / CODEC_FILE)
            codec_file = file_info(folder / CODEC_FILE)
        staging = folder / _STAGING
        staging.mkdir()
        write_rows(folder / DUPLICATES_FILE, repeated, Duplicate)
        size = round(sum(unit.seconds for unit in plan.units) * _UNIT_BYTES)
        jobs = [_Job(cfg, unit, tables, folder, codec.info, prep, rates) for unit in units]
        done = track(ordered_map(_stage_unit, jobs, cfg.pack.workers, size), "Building conversations", len(jobs))
        rejected = _write_accounts(cfg, folder, plan, done)
        if not any(path.stat().st_size for path in staging.iterdir() if path.suffix == ".samples"):
            raise ValueError(_nothing_kept(folder, rejected))
        shards, index = write_shards(
            staging, folder, cfg.source, round(cfg.pack.shard_mb * 1e6), cfg.seed, cfg.pack.workers
        )
        shutil.rmtree(staging)
        return write_dataset_json(
            folder,
            source=cfg.source,
            codec=codec.info,
            codec_file=codec_file,
            audio_root=_audio_root(cfg),
            index=index,
            shards=shards,
            rejected=dict(rejected.most_common()),
        )


def _check_done(work: Path, plan: Plan, stages: list[Stage]) -> None:
    current = fingerprints(stages)
    open_units = [unit.id for unit in plan.units if not is_done(work, unit.id, current)]
    if open_units:
        raise ValueError(
            f"{work}: {len(open_units)} of {len(plan.units)} units are not done with these options (the first: "
            f"{open_units[0]}); run them: python -m data_prep run, with the same options as this command"
        )


def prep_hash(cfg: DataPrepConfig, stages: list[Stage]) -> str:
    """Hash of the options that the samples depend on, 12 hex digits."""
    options = [asdict(cfg.strict), asdict(cfg.dedup), asdict(cfg.conversation), cfg.seed, fingerprints(stages)]
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------ the whole set


def _measure_whole_set(
    cfg: DataPrepConfig, plan: Plan, tables: list[StageTable], units: list[str]
) -> tuple[list[Duplicate], dict[str, SourceRates | None]]:
    """Duplicates in the whole set, and the speech rates of each source, from the tables of turns and scores."""
    counts: dict[str, RateCounts] = defaultdict(RateCounts)
    work = work_folder(cfg)
    needed = [table for table in tables if table.stage in ("turns", "score")]

    def heard() -> Iterator[HeardRecording]:
        for unit in track(units, "Finding duplicates"):
            source_of = {recording.id: recording.source for recording in plan.recordings(unit)}
            results = unit_results(work, unit, needed).results
            for name, scores in results["score"].items():
                score_of = {score.number: score for score in scores.turns}
                turns, annotated = [], False
                for turn in results["turns"][name].turns:
                    if turn.rejection is None:
                        annotated = annotated or turn.avg_logprob is None
                        counts[source_of[name]].add(turn)
                        fingerprint = score_of[turn.number].fingerprint if turn.number in score_of else []
                        turns.append(HeardTurn(turn.number, turn.end - turn.start, fingerprint, turn.text))
                yield HeardRecording(name, scores.pcm_sha256, turns, annotated)

    found = duplicates(heard(), cfg.dedup)
    return found, {source: rates.rates() for source, rates in counts.items()}


# ------------------------------------------------------------------------------------------------ one unit


@dataclass(frozen=True)
class _Job:
    cfg: DataPrepConfig
    unit: str
    tables: list[StageTable]
    folder: Path  # of the new dataset
    codec: CodecInfo
    prep: str
    rates: dict[str, SourceRates | None]


@dataclass
class _Accounts:
    """The outcome of a unit apart from its conversations."""

    rejections: list[Rejection]
    ledger: list[LedgerRow]
    times: list[StageTime]
    texts: list[ComparedText]


def _stage_unit(job: _Job) -> _Accounts:
    """Stages the conversations of a unit; returns its rejections, ledger and stage times."""
    work = work_folder(job.cfg)
    found = unit_results(work, job.unit, job.tables)
    rejected = {rejection.recording: rejection for rejection in found.rejections}
    recordings = load_plan(work).recordings(job.unit)
    duplicates = _read_duplicates(job.folder, recordings)
    accounts = _Accounts([], [], found.times, [])
    with StagedUnit(job.folder / _STAGING, job.unit) as staged:
        for recording in recordings:
            speech, turns = found.results["vad"].get(recording.id), found.results["turns"].get(recording.id)
            repeats = {duplicate.turn: _rejection(duplicate) for duplicate in duplicates[recording.id]}
            rejection = rejected.get(recording.id)
            if rejection is None and None in repeats:
                rejection = repeats[None].located(recording, _STAGE)
            outcomes: dict[int, Rejection | None] = {}
            if rejection is None:
                assert turns is not None, "a recording that no stage rejected has results of all stages"
                samples, rejections = _conversations(recording, found, repeats, job)
                accounts.rejections += [rejections[number] for number in sorted(rejections)]
                outcomes = {turn.number: rejections.get(turn.number) for turn in turns.turns}
                accounts.texts += _compared(recording, turns, found.results["score"][recording.id], outcomes)
                for sample in samples:
                    staged.add(sample)
            else:
                accounts.rejections.append(rejection)
            accounts.ledger += account(recording, speech, turns, outcomes, rejection)
    return accounts


def _read_duplicates(folder: Path, recordings: list[Recording]) -> dict[str, list[Duplicate]]:
    """Duplicates by recording, an empty list for a recording without any."""
    found: dict[str, list[Duplicate]] = {recording.id: [] for recording in recordings}
    chosen = pc.field("recording").isin(list(found))
    for row in pq.read_table(folder / DUPLICATES_FILE, filters=chosen).to_pylist():
        found[row["recording"]].append(from_dict(Duplicate, row))
    return found


def _rejection(duplicate: Duplicate) -> Rejection:
    twin = duplicate.kept_recording
    twin += "" if duplicate.kept_turn is None else f", turn {duplicate.kept_turn}"
    message = f"repeats {twin} (similarity {duplicate.similarity:.2f})"
    return Rejection(turn=duplicate.turn, reason=duplicate.reason, message=message)


def _conversations(
    recording: Recording, found: UnitResults, repeats: dict[int | None, Rejection], job: _Job
) -> tuple[list[Sample], dict[int, Rejection]]:
    """The samples of a recording, and the rejections of its other turns, by number."""
    cfg = job.cfg
    turns, scores, encoded = (found.results[stage][recording.id] for stage in ("turns", "score", "encode"))
    given = EncodedRecording(recording, turns, scores, encoded)
    score_of = {score.number: score for score in scores.turns}
    rejections = stage_rejections(given)
    for turn in turns.turns:
        if turn.number not in rejections:
            rejection = repeats.get(turn.number) or check(
                turn, score_of.get(turn.number), cfg.strict, job.rates.get(recording.source)
            )
            if rejection is not None:
                rejections[turn.number] = rejection
    split = split_of(recording.group, recording.split, cfg.pack.val_fraction, cfg.seed)
    chosen = rejections
    samples, rejections = conversations(given, chosen, job.codec, split, job.prep, cfg.conversation)
    for shift in range(1, cfg.encode.shifts if split == "train" else 1):
        samples += conversations(given, chosen, job.codec, split, job.prep, cfg.conversation, shift)[0]
    drafts = {turn.number: turn for turn in turns.turns}
    return samples, {
        number: rejection if rejection.stage else rejection.located(recording, _STAGE, drafts[number])
        for number, rejection in rejections.items()
    }


def _compared(
    recording: Recording, turns: Turns, scores: Scores, outcomes: dict[int, Rejection | None]
) -> list[ComparedText]:
    """The given texts of a recording that were compared with the sound."""
    turn_of = {turn.number: turn for turn in turns.turns}
    found = []
    for score in scores.turns:
        if score.cer is not None:
            turn, kept = turn_of[score.number], outcomes[score.number] is None
            found.append(
                ComparedText(
                    recording.id, recording.audio, turn.number, turn.start, turn.end, turn.text, score.heard or "",
                    score.cer, kept,
                )
            )  # fmt: skip
    return found


# -------------------------------------------------------------------------------------------------- accounts


def _write_accounts(cfg: DataPrepConfig, folder: Path, plan: Plan, units: Iterable[_Accounts]) -> Counter[str]:
    """Writes rejections, ledger and stage times, unit by unit; returns the number of rejections by reason."""
    planned = plan.rejections
    rejected = Counter(rejection.reason.value for rejection in planned)
    files = {REJECTS_FILE: Rejection, LEDGER_FILE: LedgerRow, STAGES_FILE: StageTime, TEXTS_FILE: ComparedText}
    writers: dict[str, pq.ParquetWriter] = {}

    def write(name: str, rows: list[Any]) -> None:
        if name not in writers and (rows or name != TEXTS_FILE):
            writers[name] = pq.ParquetWriter(folder / name, schema_of(files[name]), compression="zstd")
        if rows:
            writers[name].write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema_of(files[name])))

    write(REJECTS_FILE, planned)
    write(LEDGER_FILE, [_planned_loss(cfg, rejection) for rejection in planned])
    for accounts in units:
        write(REJECTS_FILE, accounts.rejections)
        write(LEDGER_FILE, accounts.ledger)
        write(STAGES_FILE, accounts.times)
        write(TEXTS_FILE, accounts.texts)
        rejected.update(rejection.reason.value for rejection in accounts.rejections)
    for name, writer in writers.items():
        writer.close()
        sync(folder / name)
    return rejected


def _planned_loss(cfg: DataPrepConfig, rejection: Rejection) -> LedgerRow:
    """The ledger row of a recording that the plan rejected: its length, if known, on one track."""
    source = cfg.sources.get(rejection.source)
    return LedgerRow(
        source=rejection.source,
        lang=(source.lang if source else cfg.lang) or UNKNOWN_LANGUAGE,
        recording=rejection.recording,
        stage=rejection.stage,
        reason=rejection.reason.value,
        ms=round((rejection.end or 0.0) * 1000),
    )


def _audio_root(cfg: DataPrepConfig) -> str:
    """The folder that the samples' `audio` is relative to; empty for several sources, or a remote one."""
    inputs: list[str | None] = [source.input for source in cfg.sources.values()] or [cfg.input]
    if len(inputs) != 1 or inputs[0] is None or not Path(inputs[0]).expanduser().exists():
        return ""
    path = Path(inputs[0]).expanduser().resolve()  # ~ stays in a YAML file, and in a dictionary of sources
    return str(path if path.is_dir() else path.parent)


def _nothing_kept(folder: Path, rejected: Counter[str]) -> str:
    counts = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    first = next(iter(read_rows(folder / REJECTS_FILE, Rejection)), None)
    if first is None:
        return f"{folder.with_suffix('')}: nothing was kept, as the plan holds no recording"
    return f"{folder.with_suffix('')}: nothing was kept ({counts}); the first: {first.recording}: {first.message}"
