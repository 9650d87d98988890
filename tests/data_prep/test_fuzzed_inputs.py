"""Anything in any place of a transcript or a list of recordings: it is read, or an error of one line says where."""

import copy
import gzip
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from layouts import Source, text, wav

from data_prep.inputs.side_files import parse_side_file

WORD = {"word": "hi", "start": 0, "end": 1}
TRANSCRIPTS: list[Any] = [
    {"turns": [{"speaker": "a", "text": "hi", "start": 0, "end": 1}]},
    {"alignments": [["hi", [0.1, 0.3], "SPEAKER_MAIN"]]},
    {"results": {"channels": [{"alternatives": [{"words": [WORD]}], "detected_language": "en"}]}},
    {"results": {"channels": [], "utterances": [{"start": 0, "end": 1, "transcript": "hi", "channel": 0}]}},
    {"segments": [{"start": 0, "end": 1, "text": "hi", "words": [WORD]}], "language": "en"},
    [{"start": 0, "duration": 1, "words": [WORD]}],
]
ODD = [None, True, 5, 1.5, "", "x", [], {}, [1], ["a"], [[1]], [None], [{}], {"a": 1}, float("nan"), 10**400]

RECORDING = {
    "id": "a",
    "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    "sampling_rate": 8000,
    "num_samples": 8000,
    "duration": 1.0,
    "channel_ids": [0],
}
SUPERVISION = {
    "id": "s", "recording_id": "a", "start": 0.1, "duration": 0.5, "channel": 0, "text": "hi", "language": "en",
    "speaker": "x",
}  # fmt: skip
CUT = {
    "id": "a", "start": 0, "duration": 1, "channel": 0, "type": "MonoCut", "custom": {"group": "g"},
    "recording": RECORDING, "supervisions": [SUPERVISION],
}  # fmt: skip
LISTS: dict[str, dict[str, list[Any]]] = {
    "lhotse": {"recordings.jsonl": [RECORDING], "supervisions.jsonl": [SUPERVISION]},
    "cuts": {"cuts.jsonl": [CUT]},
    "shar": {"cuts.000000.jsonl.gz": [CUT]},
    "nemo": {
        "m.json": [
            {"audio_filepath": "a.wav", "text": "hi", "offset": 0, "duration": 1, "speaker": "x", "lang": "en",
             "split": "train"}
        ]
    },
    "emilia": {"m.jsonl": [{"wav": "a.wav", "text": "hi", "speaker": "x", "language": "en", "dnsmos": 3.1}]},
    "spans": {"m.jsonl": [{"path": "a.wav", "start": 0, "end": 1, "text": "hi"}]},
    "manifest": {"m.jsonl": [{"audio": "a.wav", "id": "a", "group": "g", "split": "val", **TRANSCRIPTS[0]}]},
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(TRANSCRIPTS)))
def test_json_with_anything_in_any_place_is_a_transcript_or_an_error_of_one_line(number):
    """Any other exception would be a traceback, and end the plan of all recordings."""
    draw = random.Random(number)
    failed = 0
    for _ in range(300):
        try:
            parse_side_file(".json", json.dumps(_spoiled(TRANSCRIPTS[number], draw)).encode(), "x")
        except ValueError as error:
            failed += 1
            assert str(error)
    assert failed > 50


@pytest.mark.parametrize("layout", LISTS)
def test_a_list_with_anything_in_any_place_is_read_or_an_error_of_one_line(tmp_path, layout):
    """Found by itself or asked for, of any layout that is a list of JSON objects."""
    draw = random.Random(layout)
    wav(tmp_path / "a.wav")
    if layout == "shar":
        with tarfile.open(tmp_path / "recording.000000.tar", "w") as tar:
            tar.add(tmp_path / "a.wav", "a.wav")
    refused = 0
    for number in range(200):
        files = _spoiled(LISTS[layout], draw) if number else LISTS[layout]
        if not isinstance(files, dict) or files.keys() != LISTS[layout].keys():
            continue
        for name, rows in files.items():
            _write(tmp_path / name, rows)
        try:
            source = Source(tmp_path, format=layout if layout in ("nemo", "manifest") else None)
        except ValueError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
        else:
            refused += bool(source.rejected)
            assert number or (source.recordings and not source.rejected)
    assert refused > 20


def _write(path: Path, rows: Any) -> None:
    rows = rows if isinstance(rows, list) else [rows]
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        text(path, rows)


def _spoiled(content: Any, draw: random.Random) -> Any:
    """A copy in which one value, drawn from all, is another one."""
    root = {"root": copy.deepcopy(content)}
    parent, key = draw.choice(list(_places(root, "root")))
    parent[key] = draw.choice(ODD)
    return root["root"]


def _places(parent: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of nested lists and dictionaries, as the one that holds it and its key or index."""
    yield parent, key
    inner = parent[key]
    keys = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
    for below in keys:
        yield from _places(inner, below)
