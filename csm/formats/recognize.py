"""Recognition of a model's layout: by the files that are there, the keys of config.json, and the names of the tensors.

Names in the file decide, because config.json alone cannot: transformers keeps keys that it does not know, so what it
saves of csm-1b still has Sesame's `backbone_flavor`, over weights under Hugging Face's names.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

Layout = Literal["native", "sesame", "hf"]

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "ckpt.pt", "pytorch_model.bin")
"""Files in which a model directory or a hub repository may keep its weights; the first that exists is read."""

_MARKS: dict[Layout, str] = {
    "native": "backbone.norm.weight",
    "sesame": "backbone.norm.scale",
    "hf": "backbone_model.norm.weight",
}
"""A tensor that every model has, and that each layout calls otherwise."""


def read_json(file: Path) -> dict[str, Any]:
    """A model's config.json; empty if there is none. Raises ValueError naming the file if it is no JSON object."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy or export the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a model's configuration; copy or export the model again")
    return content


def weights_file(files: Collection[str], config: dict[str, Any]) -> str | None:
    """The name of the file, or of the index of files, to read a model's weights from; None if there is none.

    files: what the directory or repository lists; config: its config.json. A config.json of Hugging Face's layout may
    name a file of its own (`transformers_weights`). If it is Sesame's as well, as csm-1b's is, Sesame's single file is
    preferred: it is the smaller download.
    """
    named = config.get("transformers_weights")
    own = [named] if isinstance(named, str) else []
    candidates = [*WEIGHT_FILES, *own] if "backbone_flavor" in config else [*own, *WEIGHT_FILES]
    return next((name for name in candidates if name in files), None)


def layout_of(names: Collection[str], config: dict[str, Any]) -> Layout | None:
    """The layout of tensors with these names; config.json decides only where the names do not. None: neither does."""
    for layout, mark in _MARKS.items():
        if mark in names:
            return layout
    if "format_version" in config:
        return "native"
    if "backbone_flavor" in config:
        return "sesame"
    return "hf" if config.get("model_type") == "csm" else None
