"""Measures of turns for a dataset's report, read from the json members of its samples."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csm.data.dataset import ShardedDataset
from csm.files import write_atomically
from csm.progress import track
from data_prep.report.calls import speech_of_call, words_of_call
from data_prep.speech.text_checks import has_markup

TURNS_FILE = "report_turns.parquet"
NARROW_BAND = 4_500.0
"""Hz. Telephone speech ends at 3.4 to 4 kHz; wideband telephony reaches 7 kHz."""
_WRITE_ROWS = 1 << 16

_QUALITY = (
    "ovrl",
    "music",
    "lufs",
    "cer",
    "half_similarity",
    "speaker_similarity",
)  # in `Turn.quality`, under these names
_MEASURES = ("seconds", "gap", "overlap", "chars_per_second", "bandwidth", *_QUALITY)
_TURNS_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("key", "source", "lang", "split"), pa.dictionary(pa.int32(), pa.string())),
        "turn": pa.int32(),
        "speaker": pa.int32(),
        "loss": pa.bool_(),
        **dict.fromkeys(_MEASURES, pa.float32()),
    }
)
"""Schema of report_turns.parquet: a row per turn read. gap: null for the first turn of a conversation."""


@dataclass
class TurnMeasures:
    """Measures of the turns read.

    columns: name in `_MEASURES` -> float32 [turns], NaN if not measured
    """

    conversations: int
    columns: dict[str, np.ndarray] = field(repr=False)
    events: int  # backchannels
    narrow_share: float | None  # of the seconds whose bandwidth is known
    given_texts: float  # share of the turns whose text was given; those of the others were recognized
    with_markup: float  # share of the turns with tags, entities or bracketed notes in their text
    langs_detected: float  # share of the conversations whose language was detected; those of the others were given
    both_speak: float | None  # share of the speech of calls during which both sides speak; None: there are no calls
    said_twice: float | None  # share of the words recognized in calls that both sides say at once; None: there are none
    logprob_of_source: dict[str, float]  # median of the mean log probabilities of recognized turns


def measure_turns(dataset: ShardedDataset, numbers: np.ndarray) -> TurnMeasures:
    """Reads the json members of samples `numbers` and writes report_turns.parquet."""
    columns = {name: array("f") for name in _MEASURES}
    counts: Counter[str] = Counter()
    call_seconds = both_seconds = 0.0
    logprobs: dict[str, array[float]] = {}

    def write(path: Path) -> None:
        nonlocal call_seconds, both_seconds
        with pq.ParquetWriter(path, _TURNS_SCHEMA, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for number in track(numbers.tolist(), "Reading turns"):
                record = dataset.read_record(number)
                counts["events"] += len(record["events"])
                counts["detected"] += record["lang_prob"] is not None
                counts["turns"] += len(record["turns"])
                counts["given"] += sum(turn["words"] is None for turn in record["turns"])
                counts["markup"] += sum(has_markup(turn["text"]) for turn in record["turns"])
                speech, both = speech_of_call(record["turns"])
                call_seconds, both_seconds = call_seconds + speech, both_seconds + both
                said, twice = words_of_call(record["turns"])
                counts["call_words"] += said
                counts["said_twice"] += twice
                found = [turn["quality"]["avg_logprob"] for turn in record["turns"] if "avg_logprob" in turn["quality"]]
                if found:
                    logprobs.setdefault(record["source"], array("f")).extend(found)
                rows += _turn_rows(record)
                if len(rows) >= _WRITE_ROWS:
                    _flush(writer, rows, columns)
                    rows = []
            _flush(writer, rows, columns)

    write_atomically(dataset.local_path / TURNS_FILE, write)
    arrays = {name: np.frombuffer(values, np.float32) for name, values in columns.items()}
    known = ~np.isnan(arrays["bandwidth"])
    seconds = float(arrays["seconds"][known].sum(dtype=np.float64))
    narrow = float(arrays["seconds"][known & (arrays["bandwidth"] < NARROW_BAND)].sum(dtype=np.float64))
    return TurnMeasures(
        conversations=len(numbers),
        columns=arrays,
        events=counts["events"],
        narrow_share=narrow / seconds if seconds else None,
        given_texts=counts["given"] / max(1, counts["turns"]),
        with_markup=counts["markup"] / max(1, counts["turns"]),
        langs_detected=counts["detected"] / max(1, len(numbers)),
        both_speak=both_seconds / call_seconds if call_seconds else None,
        said_twice=counts["said_twice"] / counts["call_words"] if counts["call_words"] else None,
        logprob_of_source={source: float(np.median(found)) for source, found in sorted(logprobs.items())},
    )


def _turn_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    # Audio recorded at 8 kHz is narrow-band even if not measured; at a higher rate it may be.
    rate = record["sample_rate"]
    ceiling = rate / 2 if rate and rate / 2 < NARROW_BAND else None
    for number, turn in enumerate(record["turns"]):
        seconds, measured = turn["end"] - turn["start"], turn["quality"]
        rows.append(
            {
                **{name: record[name] for name in ("key", "source", "lang", "split")},
                "turn": number,
                "speaker": turn["speaker"],
                "loss": turn["loss"],
                "seconds": seconds,
                "gap": turn["gap"] if number else None,
                "overlap": None if turn["overlap"] is None else turn["overlap"] / seconds,
                "chars_per_second": len(turn["text"]) / seconds,
                "bandwidth": measured.get("bandwidth", ceiling),
                **{name: measured.get(name) for name in _QUALITY},
            }
        )
    return rows


def _flush(writer: pq.ParquetWriter, rows: list[dict[str, Any]], columns: dict[str, array]) -> None:
    table = pa.Table.from_pylist(rows, _TURNS_SCHEMA)
    writer.write_table(table)
    for name, values in columns.items():
        values.frombytes(table[name].cast(pa.float32()).to_numpy().astype(np.float32).tobytes())
