"""The files that describe a corpus: manifests as data_prep reads them, and corpus.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from csm.files import write_atomically
from experiments.corpus.grammar import normalized, words_of
from experiments.corpus.plan import SETS, Conversation, Level
from experiments.corpus.render import TEXT_LICENCE, finished
from experiments.corpus.voices import source_of

_TURN_KEYS = ("speaker", "text", "start", "end")


def folder_of(set_name: str) -> str:
    """Folder of a set: val lies in train's, so that one manifest is a dataset to train on."""
    return "train" if set_name == "val" else set_name


def write_manifests(planned: Sequence[Conversation], output: Path) -> None:
    """Writes `<folder>/manifest.jsonl` with all conversations that are rendered.

    Those of test sets are of the split "val": data_prep leaves test splits out, and evaluation reads "val".
    """
    lines: dict[str, list[str]] = {}
    for one in planned:
        folder = folder_of(one.set)
        record = finished(one, output / folder)
        if record is not None:
            turns = [{key: turn[key] for key in _TURN_KEYS} for turn in record["turns"]]
            split = "train" if one.set == "train" else "val"
            line = {"audio": record["audio"], "id": one.id, "split": split, "turns": turns}
            lines.setdefault(folder, []).append(json.dumps(line, ensure_ascii=False) + "\n")
    for folder, texts in lines.items():
        write_atomically(output / folder / "manifest.jsonl", partial(_write_text, "".join(texts)))


def _write_text(content: str, file: Path) -> None:
    file.write_text(content, encoding="utf-8")


def describe(level: Level, planned: Sequence[Conversation], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Content of corpus.json beside the options: licences, words, and sizes of the sets."""
    texts = {name: [turn.line.text for one in planned if one.set == name for turn in one.turns] for name in SETS}
    words = {name: Counter(word for text in said for word in words_of(text)) for name, said in texts.items()}
    sets = {}
    for name in SETS:
        ids = [one.id for one in planned if one.set == name]
        if ids:
            spoken = [turn["end"] - turn["start"] for id in ids for turn in records[id]["turns"]]
            sets[name] = {
                "conversations": len(ids),
                "turns": len(spoken),
                "sentences": len({normalized(text) for text in texts[name]}),
                "words": len(words[name]),
                "words_not_in_train": len(words[name].keys() - words["train"].keys()),
                "hours": round(sum(records[id]["seconds"] for id in ids) / 3600, 3),
                "hours_of_speech": round(sum(spoken) / 3600, 3),
                "seconds_of_a_turn": round(sum(spoken) / len(spoken), 2),
            }
    return {
        "voices_from": {voice: source_of(voice) for voice in (*level.voices, *level.test_voices)},
        "text_licence": TEXT_LICENCE,
        "held_out_words": sorted(level.grammar.held_out_words),
        "sets": sets,
    }


def text_of(summary: Mapping[str, Any], output: Path) -> str:
    """A summary for the terminal, with the command that comes next."""
    lines = [
        f"{name}: {size['conversations']} conversations, {size['turns']} turns, {size['hours']:.2f} h, "
        f"{size['words']} words, {size['words_not_in_train']} of them not in train"
        for name, size in summary["sets"].items()
    ]
    lines.append(
        f"next: python -m data_prep input={output}/train/manifest.jsonl output=data/{summary['level']} encode.shifts=4 "
        "codec=spectral codec.num_codebooks=8 codec.codebook_size=1024 transcribe=none loose=off strict=off"
    )
    return "\n".join(lines)
