"""Helpers for the generated tables of all pages."""

from __future__ import annotations

from functools import cache

from csm.compose import TRAIN
from csm.config import CSMConfig

MODELS = ("csm_1b", "csm_3b", "csm_8b")
LENGTH = 2048  # positions of a row


@cache
def config_of(model: str) -> CSMConfig:
    return TRAIN.options(TRAIN.compose([f"model={model}", "data.path=none"])).model


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]]
    return "\n".join(lines)
