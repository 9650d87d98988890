"""The kit that raters get, a folder with a page and its audio, and the key, which stays with whoever runs the test.

Each trial plays two renditions of an item, after up to 90 s of the conversation before it if the items have any, and
asks for a preference on seven steps (comparison category rating, ITU-T P.800, annex E). Names of files tell nothing;
which system is on which side only the key knows. Every rater also hears an identical pair and one with a strongly
degraded side, among the others: whoever rates these wrongly is left out of the results, by a rule that is part of the
key and thus fixed before the first answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import pyloudnorm
import soundfile
import torch
from markupsafe import Markup
from torch import Tensor

from csm.audio import load_audio
from csm.files import atomic_directory, read_json_lines

SCHEMA = 1
RATE = 24_000  # Hz, of all audio in the kit
LOUDNESS = -23.0
"""LUFS, to which every sound is brought (EBU R 128)."""
CONTEXT_SECONDS = 90.0
DEGRADED = "degraded"
_CONTEXT_GAP = 0.3  # seconds between turns
_NOISE_DB = 0.0  # signal-to-noise ratio of the degraded side

QUESTIONS = {
    "plain": "Which rendition feels more like human speech?",
    "context": "Which rendition is a more appropriate continuation of the conversation?",
}


@dataclass(frozen=True)
class ContextTurn:
    speaker: str
    text: str
    audio: Path


@dataclass(frozen=True)
class Item:
    """Renditions of one text by two systems: name -> file."""

    id: str
    systems: dict[str, Path]
    context: list[ContextTurn] = field(default_factory=list)


def read_items(path: Path) -> list[Item]:
    """Items of a JSON Lines file: `{"id", "systems": {"NAME": "a.wav", "OTHER": "b.wav"}, "context": [...]}`.

    `context` (optional): the turns before, `{"speaker", "text", "audio"}`. Paths are relative to the file.

    Raises:
        ValueError: a line is not such an item or names a file that is missing, an id occurs twice, the names of the
            systems differ between items, or only some items have context.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of listening items")
    items: dict[str, Item] = {}
    for number, record in read_json_lines(path):
        where = f"{path}:{number}"
        item = _item(record, where, path.parent)
        if item.id in items:
            raise ValueError(f"{where}: id {item.id!r} occurs twice; ids must be unique")
        items[item.id] = item
        first = next(iter(items.values()))
        if set(item.systems) != set(first.systems):
            raise ValueError(f"{where}: compares {_names(item)}, the first item {_names(first)}")
        if bool(item.context) != bool(first.context):
            raise ValueError(f"{where}: either all items have context, or none; make two kits of them")
    if not items:
        raise ValueError(f"{path}: holds no items; write one JSON object a line")
    return list(items.values())


def _item(record: Any, where: str, folder: Path) -> Item:
    systems = record.get("systems") if isinstance(record, dict) else None
    if not isinstance(systems, dict) or len(systems) != 2 or "id" not in record:
        raise ValueError(f'{where}: must be {{"id": ..., "systems": {{"NAME": "a.wav", "OTHER": "b.wav"}}}}')
    if DEGRADED in systems:
        raise ValueError(f"{where}: a system cannot be named {DEGRADED!r}, as the bad side of catch trials is")
    context = []
    for turn in record.get("context", []):
        if not isinstance(turn, dict) or not {"speaker", "text", "audio"} <= turn.keys():
            raise ValueError(f"{where}: a turn of context has speaker, text and audio")
        context.append(ContextTurn(str(turn["speaker"]), str(turn["text"]), folder / turn["audio"]))
    item = Item(str(record["id"]), {str(name): folder / file for name, file in systems.items()}, context)
    for file in [*item.systems.values(), *(turn.audio for turn in context)]:
        if not file.is_file():
            raise ValueError(f"{where}: audio file {file} does not exist")
    return item


def _names(item: Item) -> str:
    return " and ".join(sorted(item.systems))


# ------------------------------------------------------------------------------------------------------ assignment

Catch = Literal["identical", "degraded"]


@dataclass(frozen=True)
class Trial:
    """One hearing of a rater: an item with a system on each side, or a catch trial, which has no systems to compare.

    left, right: a system's name; DEGRADED for the bad side of a catch trial
    """

    item: str
    left: str
    right: str
    catch: Catch | None = None


def assign(
    items: Sequence[str], systems: tuple[str, str], raters: int, trials: int, rng: np.random.Generator
) -> list[list[Trial]]:
    """Trials of each rater, in random order, a rater's catch trials among them but never first.

    Items differ by at most one in how often they are rated. Each rater has the systems on both sides equally often, or
    nearly so, and so has, as far as that allows, each item.

    Raises:
        ValueError: a rater would hear an item twice, or nothing.
    """
    if not 1 <= trials <= len(items):
        raise ValueError(f"trials={trials} per rater must lie in 1..{len(items)}, the number of items")
    rated, swapped = Counter(dict.fromkeys(items, 0)), Counter(dict.fromkeys(items, 0))
    plan = []
    for _ in range(raters):
        order = [items[i] for i in rng.permutation(len(items))]
        chosen = sorted(order, key=lambda item: rated[item])[:trials]
        rated.update(chosen)
        # those that were most often straight are swapped, and of the rest half in all
        straight_first = sorted(chosen, key=lambda item: 2 * swapped[item] - rated[item])
        swaps = set(straight_first[: (trials + int(rng.integers(2))) // 2])
        swapped.update(swaps)
        here = [Trial(item, *(reversed(systems) if item in swaps else systems)) for item in chosen]
        here = [here[i] for i in rng.permutation(trials)]
        for catch in ("identical", "degraded"):
            here.insert(1 + int(rng.integers(len(here))), _catch(catch, items, systems, rng))
        plan.append(here)
    return plan


def _catch(kind: Catch, items: Sequence[str], systems: tuple[str, str], rng: np.random.Generator) -> Trial:
    item, system = items[int(rng.integers(len(items)))], systems[int(rng.integers(2))]
    if kind == "identical":
        return Trial(item, system, system, kind)
    sides = (system, DEGRADED) if rng.integers(2) else (DEGRADED, system)
    return Trial(item, *sides, kind)


# ----------------------------------------------------------------------------------------------------------- files


def export_kit(items: Sequence[Item], output: Path, *, first: str, raters: int, trials: int, seed: int) -> None:
    """Writes `output/kit`, to be given to raters, and `output/key.json`, which is not.

    first: the system whose advantage positive scores mean

    Raises:
        ValueError: `first` is no system of the items, audio is unreadable or silent, or see `assign`.
        FileExistsError: `output` exists: answers to it may be on their way.
    """
    systems = sorted(items[0].systems)
    if first not in systems:
        raise ValueError(f"the items compare {' and '.join(systems)}, not {first!r}")
    if raters < 1:
        raise ValueError(f"raters={raters} must be at least 1")
    second = next(name for name in systems if name != first)
    names = [item.id for item in items]
    plan = assign(names, (first, second), raters, trials, np.random.default_rng(seed))
    if output.exists():
        raise FileExistsError(f"{output} exists; answers to its kit would no longer fit: choose another folder")
    with atomic_directory(output) as folder:
        (folder / "kit" / "audio").mkdir(parents=True)
        sounds = _Sounds({item.id: item for item in items}, folder / "kit", seed)
        pages = [[sounds.of(trial) for trial in of_rater] for of_rater in plan]
        study = "context" if items[0].context else "plain"
        key: dict[str, Any] = {
            "schema": SCHEMA,
            "study": study,
            "question": QUESTIONS[study],
            "first": first,
            "second": second,
            "seed": seed,
            "loudness_lufs": LOUDNESS,
            "rule": "a rater is left out who rates the identical pair beyond -1..1 or does not prefer the clean side",
            "raters": [[asdict(trial) for trial in of_rater] for of_rater in plan],
        }
        # the same plan over other sounds is another kit
        key["kit"] = hashlib.sha256(json.dumps([key, pages], sort_keys=True).encode()).hexdigest()[:16]
        data = {"kit": key["kit"], "question": key["question"], "raters": pages}
        _write_page(data, folder / "kit" / "index.html")
        text = json.dumps(key, indent=1, ensure_ascii=False)
        (folder / "key.json").write_text(text + "\n", encoding="utf-8")


class _Sounds:
    """The files of a kit, each written when a trial first needs it."""

    def __init__(self, items: dict[str, Item], kit: Path, seed: int) -> None:
        self.items, self.kit, self.seed = items, kit, seed
        self.written: dict[tuple[str, str | None], str] = {}  # by item and system; None: the item's context

    def of(self, trial: Trial) -> dict[str, Any]:
        """A trial as the page gets it: files, and the words of the context."""
        clean = trial.right if trial.left == DEGRADED else trial.left
        left, right = (self._rendition(trial.item, side, clean) for side in (trial.left, trial.right))
        turns = _last_turns(self.items[trial.item].context)
        if not turns:
            return {"left": left, "right": right}
        if (trial.item, None) not in self.written:
            self.written[trial.item, None] = self._write(_joined(turns), turns[0].audio)
        words = [[turn.speaker, turn.text] for turn in turns]
        return {"left": left, "right": right, "context": self.written[trial.item, None], "transcript": words}

    def _rendition(self, item: str, side: str, clean: str) -> str:
        """side: a system, or DEGRADED, which is that of `clean` with noise."""
        if (item, side) not in self.written:
            source = self.items[item].systems[clean if side == DEGRADED else side]
            audio = load_audio(source, RATE)
            if side == DEGRADED:
                audio = with_noise(audio, np.random.default_rng((self.seed, len(self.written))))
            self.written[item, side] = self._write(audio, source)
        return self.written[item, side]

    def _write(self, audio: Tensor, source: Path) -> str:
        """Writes 16-bit FLAC named by its content; returns its path relative to the page."""
        samples = (at_loudness(audio, source) * 32767).round().to(torch.int16).numpy()
        name = f"audio/{hashlib.sha256(samples.tobytes()).hexdigest()[:20]}.flac"
        soundfile.write(self.kit / name, samples, RATE)
        return name


def _write_page(data: dict[str, Any], path: Path) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csm.evaluation", "listening"), undefined=jinja2.StrictUndefined, autoescape=True
    )
    # inside a script nothing is an entity, so it is "<" alone that could end it
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = environment.get_template("page.html.j2").render(data=Markup(text))
    path.write_text(page, encoding="utf-8")


def _last_turns(context: Sequence[ContextTurn]) -> list[ContextTurn]:
    """The last turns, of at most 90 s together; of a longer last one, all of it."""
    kept: list[ContextTurn] = []
    seconds = 0.0
    for turn in reversed(context):
        seconds += soundfile.info(turn.audio).duration + _CONTEXT_GAP
        if kept and seconds > CONTEXT_SECONDS:
            break
        kept.insert(0, turn)
    return kept


def _joined(turns: Sequence[ContextTurn]) -> Tensor:
    gap = torch.zeros(round(_CONTEXT_GAP * RATE))
    return torch.cat([part for turn in turns for part in (load_audio(turn.audio, RATE), gap)])


def with_noise(audio: Tensor, rng: np.random.Generator) -> Tensor:
    """Audio with white noise of its own power: a side that nobody prefers."""
    noise = torch.from_numpy(rng.standard_normal(len(audio)).astype(np.float32))
    return audio + noise * audio.square().mean().sqrt() * 10 ** (-_NOISE_DB / 20)


def at_loudness(audio: Tensor, source: Path) -> Tensor:
    """Audio at -23 LUFS (ITU-R BS.1770-4), or as near to it as full scale allows. Raises ValueError for silence."""
    seconds = len(audio) / RATE
    block = 0.4 if seconds >= 0.4 else math.nextafter(seconds, 0.0)
    level = float(pyloudnorm.Meter(RATE, filter_class="DeMan", block_size=block).integrated_loudness(audio.numpy()))
    if not math.isfinite(level):
        raise ValueError(f"{source}: is silent; leave its item out of the listening test, and say so")
    scaled = audio * 10 ** ((LOUDNESS - level) / 20)
    return scaled / max(1.0, float(scaled.abs().max()))
