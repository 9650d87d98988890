"""Published models of CSM's architecture: where they are, how they are laid out, how they write a turn.

`csm models` prints it. A file in Sesame's layout that comes without config.json or tokenizer gets tokenizer and prompt
from the entry of its shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from csm.config import CSMConfig
from csm.formats.sesame import FLAVORS
from csm.text import MISO_PROMPT, SESAME_PROMPT

LLAMA_TOKENIZER = "unsloth/Llama-3.2-1B"
"""An ungated copy of the gated tokenizer that the code of Sesame and MisoTTS loads."""

_MARVIS_LAYOUT = "sesame; hf in a repository of the same name with -transformers"
_MARVIS_250M = ("llama-250M", "llama-60M")
_MARVIS = (
    "its layout as public code shows it (Marvis's trainer, mlx-audio): names, rotary positions, prompt, BOS and EOS; "
    "logits, greedy codes and ids of turns against the formulas of that code at small size, and the same weights under "
    "transformers' names against transformers; the 250M's names and shapes on the meta device. Neither its files nor "
    "its weights were at hand."
)
_MARVIS_SHAPE = " No public code names this one's shape: it is read from its config.json."


@dataclass(frozen=True)
class KnownModel:
    """A published model.

    address:   on the hub
    layout:    of its files (docs/checkpoints.md)
    gate:      what has to be accepted before it can be downloaded
    size:      of backbone and depth decoder, and of the weights' file
    preset:    `model=` of the same shape; None if there is none
    tokenizer: its text tokenizer, a hub id
    prompt:    how a turn is written, for `str.format`
    flavors:   of its stacks in Sesame's layout (csm/formats/sesame.py); None where only its config.json has the shape
    verified:  what was checked here, and against what
    """

    name: str
    address: str
    licence: str
    gate: str
    layout: str
    size: str
    preset: str | None
    tokenizer: str
    prompt: str
    flavors: tuple[str, str] | None
    verified: str


KNOWN = (
    KnownModel(
        name="csm-1b",
        address="sesame/csm-1b",
        licence="Apache-2.0",
        gate="its terms on the hub",
        layout="sesame, and hf in the same repository",
        size="1B + 100M; 6.2 GB (fp32)",
        preset="csm_1b",
        tokenizer=LLAMA_TOKENIZER,
        prompt=SESAME_PROMPT,
        flavors=("llama-1B", "llama-100M"),
        verified="names, shapes and rotary positions of the published files; the ids of transformers' own test; "
        "at small size, logits and greedy codes against transformers and Sesame's formulas, and losses against "
        "transformers. The weights have not run here.",
    ),
    KnownModel(
        name="misotts",
        address="MisoLabs/MisoTTS",
        licence="modified MIT",
        gate="none",
        layout="sesame, one file without config.json",
        size="8B + 300M; 33 GB (fp32)",
        preset="csm_8b",
        tokenizer=LLAMA_TOKENIZER,
        prompt=MISO_PROMPT,
        flavors=("llama-8B", "llama-300M"),
        verified="names and shapes at full size on the meta device; logits, greedy codes and ids of turns against its "
        "published formulas at small size. The weights have not run here.",
    ),
    *(
        KnownModel(
            name=name,
            address=address,
            licence="Apache-2.0",
            gate="none",
            layout=layout,
            size=size,
            preset=None,
            tokenizer=address,
            prompt=SESAME_PROMPT,
            flavors=flavors,
            verified=verified + " It continues a voice within one turn: reference text and new text joined.",
        )
        for name, address, layout, size, flavors, verified in (
            ("marvis-250m", "Marvis-AI/marvis-tts-250m-v0.1", _MARVIS_LAYOUT, "250M + 60M", _MARVIS_250M, _MARVIS),
            ("marvis-250m-v0.2", "Marvis-AI/marvis-tts-250m-v0.2", _MARVIS_LAYOUT, "250M + 60M", _MARVIS_250M, _MARVIS),
            ("marvis-100m-v0.2", "Marvis-AI/marvis-tts-100m-v0.2", "sesame", "100M", None, _MARVIS + _MARVIS_SHAPE),
        )
    ),
)


def of_shape(config: CSMConfig) -> KnownModel:
    """The published model in Sesame's layout whose stacks have these shapes; csm-1b, Sesame's own, for all others."""
    for model in KNOWN:
        if model.flavors and (config.backbone, config.decoder) == tuple(FLAVORS[name] for name in model.flavors):
            return model
    return KNOWN[0]


def find(name: str) -> KnownModel:
    """An entry by its name or address. Raises ValueError naming those that there are."""
    for model in KNOWN:
        if name.lower() in (model.name, model.address.lower()):
            return model
    raise ValueError(f"no model {name!r} is known; known are {', '.join(model.name for model in KNOWN)}")
