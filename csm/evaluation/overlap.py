"""Overlap of what is evaluated with the training data: texts that were trained on, and groups (shows, calls, voices).

A zero-shot number of a voice or a text that the model has seen says little. Which datasets a model was trained on is
part of its checkpoint; those that can be read here are searched.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import PromptSet

MOST_CONVERSATIONS = 20_000
"""Training conversations whose texts are read, in the dataset's shuffled order."""


@dataclass(frozen=True)
class Overlap:
    """Counts over prompts. searched: datasets that were read; unreachable: those that are not here."""

    searched: list[str]
    unreachable: list[str]
    conversations: int
    of_conversations: int
    texts: int
    groups: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """For the report's notes."""
        if not self.searched:
            named = f" ({', '.join(self.unreachable)})" if self.unreachable else ": the checkpoint names none"
            return f"Overlap with the training data is not known: it is not here{named}."
        part = ""
        if self.conversations < self.of_conversations:
            part = f" (the first {self.conversations} of {self.of_conversations} conversations)"
        missing = f"; not here: {', '.join(self.unreachable)}" if self.unreachable else ""
        return (
            f"Training data{part}: {self.texts} of {self.prompts} texts and {self.groups} of {self.prompts} groups "
            f"(show, call or voice) of the prompts occur in it{missing}."
        )


def find_overlap(prompt_set: PromptSet, trained_on: list[str]) -> Overlap:
    """Looks for the prompts' texts and groups in the split "train" of the datasets that are here."""
    here = [path for path in trained_on if (Path(path) / "dataset.json").is_file()]
    texts: set[str] = set()
    groups: set[str] = set()
    read = total = 0
    for path in here:
        dataset = ShardedDataset(path)
        rows = dataset.select("train")
        total += len(rows)
        names = dataset.column("group")
        groups.update(str(names[int(row)]) for row in rows)
        for row in rows[: max(0, MOST_CONVERSATIONS - read)]:
            texts.update(_plain(turn.text) for turn in dataset.read_turns(int(row)))
            read += 1
    prompts = prompt_set.prompts
    return Overlap(
        searched=here,
        unreachable=[path for path in trained_on if path not in here],
        conversations=read,
        of_conversations=total,
        texts=sum(_plain(prompt.text) in texts for prompt in prompts),
        groups=sum(prompt.cluster in groups for prompt in prompts),
        prompts=len(prompts),
    )


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text).lower().split())
