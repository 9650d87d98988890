"""Two tests of pronunciation that Sesame described: homographs, and consistency over the turns of a conversation.

    homograph     200 sentences whose sense decides how a word is said; without context
    consistency   200 pairs: a recorded turn says a word in one of its variants, and the next one should follow it

The sentences are part of the package (csm/evaluation/sets/). Recordings of them are the user's: the contexts of
`consistency`, from people or a program that speaks given phonemes, and those of `homograph`, for a row of human speech.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import AudioSpan, EvalPrompt, PromptSet
from csm.evaluation.sets.items import (
    VERSION,
    ConsistencyItem,
    HomographItem,
    Target,
    consistency_items,
    homograph_items,
)
from csm.evaluation.suites.suite import Suite, voice
from csm.formats.layouts import Checkpoint

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
SPEAKER = 0

_Item = TypeVar("_Item", HomographItem, ConsistencyItem)


def load_homograph(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    """Sentences in turn for every word and sense. Recordings of people, `<id>.wav` in `eval.data`, are optional."""
    items = homograph_items()
    prompts = []
    for item in _in_turn(items, [(item.word, item.sense) for item in items])[: settings.max_prompts]:
        recording = None if settings.data is None else _recording(Path(settings.data), item.id)
        prompts.append(
            EvalPrompt(
                item.id,
                item.text,
                SPEAKER,
                item.word,
                reference=None if recording is None else AudioSpan(recording),
                missing_reference=None if recording else f"eval.data holds no recording {item.id}.wav of the sentence",
                target=Target(item.word, item.sense),
            )
        )
    return PromptSet(prompts, _origin("homograph", len(items)))


def load_consistency(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    """Pairs in turn for every word and variant, as far as `eval.data` holds `<id>.wav` of their contexts.

    Raises:
        FileNotFoundError: `eval.data` is not set, or holds the context of no pair.
    """
    items = consistency_items()
    folder = Path(settings.data or "")
    found = {item.id: _recording(folder, item.id) for item in items} if settings.data is not None else {}
    present = [item for item in items if found.get(item.id) is not None]
    if not present:
        here = "eval.data is not set" if settings.data is None else f"{folder} holds no {items[0].id}.wav"
        raise FileNotFoundError(
            f"{here}; set eval.data to a folder with recordings of the contexts of csm/evaluation/sets/"
            "consistency.jsonl, one <id>-<variant>.wav each, such as aunt-01-ant.wav"
        )
    prompts = []
    for item in _in_turn(present, [(item.word, item.variant) for item in present])[: settings.max_prompts]:
        path = found[item.id]
        assert path is not None, "present"
        segment, span = voice(path, item.context, SPEAKER, codec, item.id)
        prompts.append(
            EvalPrompt(
                item.id,
                item.text,
                SPEAKER,
                item.word,
                context=[segment],
                own_context=[span],
                missing_reference="the set has no recordings of the answers",
                target=Target(item.word, item.variant),
            )
        )
    lacking = len(items) - len(present)
    notes = [f"{lacking} of {len(items)} pairs have no recording of their context in eval.data."] if lacking else []
    return PromptSet(prompts, _origin("consistency", len(items)), notes)


def _in_turn(items: list[_Item], kinds: list[tuple[str, str]]) -> list[_Item]:
    """One item of each kind after the other, so that the first ones are of all kinds."""
    by_kind: dict[tuple[str, str], list[_Item]] = {}
    for item, kind in zip(items, kinds, strict=True):
        by_kind.setdefault(kind, []).append(item)
    return [item for row in zip_longest(*by_kind.values()) for item in row if item is not None]


def _recording(folder: Path, name: str) -> Path | None:
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def _origin(name: str, items: int) -> dict[str, object]:
    return {"prompts_file": f"csm/evaluation/sets/{name}.jsonl", "set_version": VERSION, "prompts_in_file": items}


_SCORING = (
    "share of sentences in which the word has the expected variant, undecided ones are wrong; forced choice: the "
    "variant with the likelier alignment, greedy: the one nearest to the recognizer's phonemes"
)

SUITE_HOMOGRAPH = Suite(
    name="homograph",
    version=1,
    scoring=_SCORING,
    metrics=("pronounced", "pronounced_greedy", "wer_corpus", "failed"),
    load=load_homograph,
)
SUITE_CONSISTENCY = Suite(
    name="consistency",
    version=1,
    scoring=f"{_SCORING}; a context in which the recognizer does not hear its variant has no part",
    metrics=("pronounced", "pronounced_greedy", "wer_corpus", "cosine_earlier", "failed"),
    load=load_consistency,
)
