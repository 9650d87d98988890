"""The corpus's command: python -m experiments.corpus level=desk output=DIR [option=value ...]"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from csm.errors import user_errors
from csm.files import exclusive, write_atomically
from csm.progress import TerminalProgress
from experiments.corpus.levels import LEVELS
from experiments.corpus.plan import Conversation, Level, conversations
from experiments.corpus.records import describe, folder_of, text_of, write_manifests
from experiments.corpus.render import render
from experiments.corpus.tokenizer import write_tokenizer
from experiments.corpus.voices import load_voice

HELP = """Makes an open corpus of spoken conversations, offline.

    python -m experiments.corpus level=desk output=corpora/desk            about 4 hours by two voices
    python -m experiments.corpus level=desk output=corpora/desk hours=0.5  its first half hour

The same command goes on after an interruption, and with more hours adds to what is there. Then, for example:

    python -m data_prep input=corpora/desk/train/manifest.jsonl output=data/desk encode.shifts=4 codec=spectral \
        codec.num_codebooks=8 codec.codebook_size=1024 transcribe=none loose=off strict=off

Options, with their defaults:

    level=desk      desk (about 300 words in known patterns), voices (desk by four voices) or open (open vocabulary)
    output=         folder to write
    seed=0          of texts and pauses; held-out sentences and words are the same for every seed
    hours=null      hours of training speech, about; null: the level's own
    workers=1       processes that render, each on one core; the result does not depend on them
"""

CORPUS = "corpus.json"
TOKENIZER = "tokenizer"


@dataclass
class CorpusOptions:
    """Options of `python -m experiments.corpus`."""

    level: str = "desk"
    """desk (about 300 words), voices (desk by four voices) or open."""
    output: str = MISSING
    """Folder to write."""
    seed: int = 0
    """Of texts, voices and pauses. Held-out sentences and words are the same for every seed."""
    hours: float | None = None
    """Hours of training speech, about; null: the level's own."""
    workers: int = 1
    """Processes that render, each on one core; the result does not depend on them."""


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; `words` are the command line's, by default this process's own."""
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        print(HELP)
        return
    try:
        with user_errors():
            make(_read(words))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def make(options: CorpusOptions) -> dict[str, Any]:
    """Renders a corpus and returns what `corpus.json` then holds.

    Raises ValueError if an option is wrong, a voice's engine is missing, or the folder holds another corpus.
    """
    level, output = _level(options), Path(options.output)
    hours = level.hours if options.hours is None else options.hours
    voices = [*level.voices, *level.test_voices]
    identity: dict[str, Any] = {"level": level.name, "seed": options.seed, "voices": voices}
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        _claim(output, identity)
        print(f"{level.name}: choosing the texts of {hours:g} hours", file=sys.stderr, flush=True)
        planned = list(conversations(level, options.seed, hours))
        for voice in voices:
            load_voice(voice)  # a missing engine is said before hours of work
        try:
            records = _render_all(planned, output, options.workers)
        finally:
            write_manifests(planned, output)
        texts = [turn.line.text for one in planned if one.set == "train" for turn in one.turns]
        ids = write_tokenizer(texts, output / TOKENIZER)
        summary = identity | {"hours": hours, "tokenizer_ids": ids} | describe(level, planned, records)
        write_atomically(output / CORPUS, lambda file: file.write_text(json.dumps(summary, indent=1), encoding="utf-8"))
        print(text_of(summary, output), file=sys.stderr)
    return summary


def _level(options: CorpusOptions) -> Level:
    if options.level not in LEVELS:
        raise ValueError(f"level={options.level} is not known; levels are {', '.join(LEVELS)}")
    if options.workers < 1 or (options.hours is not None and options.hours <= 0):
        raise ValueError("workers must be 1 or more, and hours more than 0")
    return LEVELS[options.level]


def _claim(output: Path, identity: dict[str, Any]) -> None:
    """Marks the folder as this corpus's. Raises ValueError if it is another's, or holds other things."""
    path = output / CORPUS
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        differs = [f"{key}={held.get(key)}" for key in identity if held.get(key) != identity[key]]
        if differs:
            raise ValueError(f"{output} holds another corpus ({', '.join(differs)}); choose another output")
        return
    if any(output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no {CORPUS}; choose another output")
    write_atomically(path, lambda file: file.write_text(json.dumps(identity), encoding="utf-8"))


def _render_all(planned: Sequence[Conversation], output: Path, workers: int) -> dict[str, dict[str, Any]]:
    """The records of all conversations by id, rendered where they are missing; shows progress and speed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    records: dict[str, dict[str, Any]] = {}
    began, seconds = time.monotonic(), 0.0
    with TerminalProgress(*columns) as progress:
        task = progress.add_task("conversations", total=len(planned), speed="")
        for one, record, new in render([(one, output / folder_of(one.set)) for one in planned], workers):
            records[one.id] = record
            seconds += record["seconds"] if new else 0.0
            speed = f"{seconds / (time.monotonic() - began):.1f}x real time" if new else "already there"
            progress.update(task, advance=1, speed=speed)
    return records


def _read(words: Sequence[str]) -> CorpusOptions:
    known = {field.name for field in fields(CorpusOptions)}
    for word in words:
        if word.partition("=")[0] not in known or "=" not in word:
            raise ValueError(f"{word!r} is not an option; options are {', '.join(sorted(known))}")
    read = OmegaConf.merge(OmegaConf.structured(CorpusOptions), OmegaConf.from_dotlist(list(words)))
    if OmegaConf.is_missing(read, "output"):
        raise ValueError("no output given; usage: python -m experiments.corpus level=desk output=DIR")
    options = OmegaConf.to_object(read)
    assert isinstance(options, CorpusOptions)
    return options
