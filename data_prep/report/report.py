"""Writes a dataset's report: `report.html`, a self-contained page to review before training, and `report.json`.

tables.py    totals of ledger, rejects, duplicates and stage times
data.py      statistics of index, row fill and codes
turns.py     measures of turns
texts.py     given texts that disagree with the sound
checks.py    rules of thumb, with rules.py and checks_of_turns.py
samples.py   random conversations with their speech
figures.py   SVG figures
page.py      the HTML page
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from csm.data.dataset import ShardedDataset, is_remote
from csm.files import write_atomically
from data_prep.packing.output import REPORT_FILE
from data_prep.report.checks import check_dataset
from data_prep.report.data import (
    MAX_CONVERSATIONS,
    ROW_POSITIONS,
    Columns,
    Distribution,
    RowFill,
    choose,
    distribution,
    measure_codebooks,
    measure_row_fill,
    read_index,
)
from data_prep.report.page import JSON_FILE, Report, render
from data_prep.report.samples import listen
from data_prep.report.tables import read_duplicates, read_flow, read_rates, read_rejections
from data_prep.report.texts import ComparedTexts, read_texts
from data_prep.report.turns import NARROW_BAND, TurnMeasures, measure_turns

SCHEMA_VERSION = 1


def write_report(path: str | Path, seed: int = 1234, conversations: int = 20) -> Path:
    """Writes report.html, report.json and report_turns.parquet into the dataset `path`; returns report.html's path.

    Args:
        seed: of the random choice of conversations to read and to listen to; equal seeds give equal reports.
        conversations: largest number of conversations to listen to.

    Raises:
        FileNotFoundError: there is no dataset, or a file that it names is missing.
        ValueError: the dataset is remote, or one of its files is damaged.
    """
    if is_remote(path):
        raise ValueError(f"{path}: report reads local folders; run it where the dataset is stored")
    dataset = ShardedDataset(path)
    rng = np.random.default_rng(seed)
    contents, columns = read_index(dataset)
    fill, positions = measure_row_fill(dataset, columns, seed)
    numbers = choose(len(dataset), MAX_CONVERSATIONS, rng)
    turns = measure_turns(dataset, numbers)
    codebooks = measure_codebooks(dataset, numbers, rng)
    texts = read_texts(dataset.local_path)
    flow, rejections = read_flow(dataset.local_path), read_rejections(dataset.local_path)
    heard, heard_as = listen(dataset, rng.permutation(choose(len(dataset), conversations, rng)))
    report = Report(
        info=dataset.info,
        seed=seed,
        flow=flow,
        rejections=rejections,
        duplicates=read_duplicates(dataset.local_path),
        rates=read_rates(dataset.local_path),
        contents=contents,
        fill=fill,
        turns=turns,
        codebooks=codebooks,
        texts=texts,
        distributions=_distributions(columns, positions, fill, turns, texts),
        checks=check_dataset(flow, rejections, contents, fill, turns, codebooks, texts),
        heard=[entry.sample.key for entry in heard],
        heard_as=heard_as,
    )
    text = json.dumps(_numbers(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(dataset.local_path / JSON_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    page = render(report, heard)
    html = dataset.local_path / REPORT_FILE
    write_atomically(html, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return html


def _distributions(
    columns: Columns, positions: np.ndarray, fill: RowFill, turns: TurnMeasures, texts: ComparedTexts | None
) -> dict[str, Distribution]:
    """Distributions by name; those without values are omitted."""
    of_turns, found = turns.columns, "turns"
    exact = "counted" if fill.exact else "estimated"
    made = {
        "turn_seconds": distribution("Turn length", "s", found, of_turns["seconds"], np.arange(0, 30.1, 0.5)),
        "gap_seconds": distribution(
            "Gap before a turn", "s", found, of_turns["gap"], np.arange(-3, 8.1, 0.25)
        ),
        "overlap": distribution(
            "Share of a turn that other speech overlaps", "", found, of_turns["overlap"], np.linspace(0, 1, 21)
        ),
        "chars_per_second": distribution(
            "Characters per second", "/s", found, of_turns["chars_per_second"], np.arange(0.0, 41)
        ),
        "cer": distribution(
            "Character error rate of given texts", "", "texts",
            np.zeros(0, np.float32) if texts is None else texts.rates, np.linspace(0, 1, 21),
        ),
        "half_similarity": distribution(
            "Similarity of the voices of a turn's halves", "", found, of_turns["half_similarity"],
            np.linspace(0, 1, 41),
        ),
        "speaker_similarity": distribution(
            "Similarity of a turn's voice to its speaker's others", "", found, of_turns["speaker_similarity"],
            np.linspace(0, 1, 41),
        ),
        "ovrl": distribution("DNSMOS OVRL", "", found, of_turns["ovrl"], np.arange(1, 5.01, 0.1)),
        "music": distribution("Share of a turn with music", "", found, of_turns["music"], np.linspace(0, 1, 21)),
        "lufs": distribution("Loudness", "LUFS", found, of_turns["lufs"], np.arange(-60.0, 1, 2)),
        "bandwidth": distribution("Bandwidth", "Hz", found, of_turns["bandwidth"], np.arange(0.0, 24_001, 500)),
        "turns": distribution("Turns of a conversation", "", "conversations", columns.turns, np.arange(0.5, 65)),
        "speakers": distribution(
            "Speakers of a conversation", "", "conversations", columns.speakers, np.arange(0.5, 9)
        ),
        "positions": distribution(
            f"Positions of a conversation ({exact})", "", "conversations", positions,
            np.arange(0.0, 1.5 * ROW_POSITIONS + 1, ROW_POSITIONS / 16),
        ),
    }  # fmt: skip
    return {name: measure for name, measure in made.items() if measure is not None}


def _numbers(report: Report) -> dict[str, Any]:
    """The contents of report.json."""
    info = report.info

    def optional(entries: list[Any] | None) -> list[dict[str, Any]] | None:
        return None if entries is None else [asdict(entry) for entry in entries]

    return {
        "schema": SCHEMA_VERSION,
        "dataset": {
            "source": info.source,
            "fingerprint": info.fingerprint,
            "codec": info.codec.to_dict(),
            "shards": len(info.shards),
            "bytes": sum(shard.size for shard in info.shards),
            "taken_down": info.takedown is not None,
        },
        "seed": report.seed,
        "contents": asdict(report.contents),
        "flow": report.flow and asdict(report.flow),
        "rejects": optional(report.rejections),
        "duplicates": report.duplicates and asdict(report.duplicates),
        "texts": report.texts
        and {
            "compared": len(report.texts.rates),
            "disagreeing": report.texts.disagreeing,
            "disagreeing_kept": report.texts.disagreeing_kept,
            "worst": report.texts.worst,
        },
        "stages": report.rates
        and [
            asdict(rate) | {"real_time": rate.real_time, "real_time_cpu": rate.real_time_cpu} for rate in report.rates
        ],
        "packing": asdict(report.fill) | {"row_positions": ROW_POSITIONS},
        "turns_looked_at": {
            "conversations": report.turns.conversations,
            "turns": len(report.turns.columns["seconds"]),
            "backchannels": report.turns.events,
            "narrow_band": NARROW_BAND,
            "narrow_share": report.turns.narrow_share,
            "given_texts": report.turns.given_texts,
            "with_markup": report.turns.with_markup,
            "langs_detected": report.turns.langs_detected,
            "both_speak": report.turns.both_speak,
            "said_twice": report.turns.said_twice,
            "logprob_of_source": report.turns.logprob_of_source,
        },
        "codebooks": asdict(report.codebooks),
        "distributions": {name: asdict(measure) for name, measure in report.distributions.items()},
        "checks": optional(report.checks),
        "listened_to": {"keys": report.heard, "speech": report.heard_as},
    }
