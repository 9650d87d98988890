"""A training and research framework for CSM, the Conversational Speech Model.

Speaking from an exported model:

    from csm import load_generator

    generator = load_generator("runs/quickstart/export")
    audio = generator.generate("Message marked urgent.", speaker=0, context=[])  # float32 [num_samples]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csm.config import CSMConfig
    from csm.formats.load import load_csm_1b, load_generator, load_model
    from csm.inference.conversation import Conversation
    from csm.inference.generator import Generator, SpeechRequest
    from csm.inference.segments import GeneratedSegment, Segment
    from csm.inference.voice import Voice
    from csm.model.csm import CSM

__version__ = "0.1.0"
__all__ = [
    "CSM",
    "CSMConfig",
    "Conversation",
    "GeneratedSegment",
    "Generator",
    "Segment",
    "SpeechRequest",
    "Voice",
    "load_csm_1b",
    "load_generator",
    "load_model",
]

_HOMES = {
    "CSM": "csm.model.csm",
    "CSMConfig": "csm.config",
    "Conversation": "csm.inference.conversation",
    "GeneratedSegment": "csm.inference.segments",
    "Generator": "csm.inference.generator",
    "Segment": "csm.inference.segments",
    "SpeechRequest": "csm.inference.generator",
    "Voice": "csm.inference.voice",
    "load_csm_1b": "csm.formats.load",
    "load_generator": "csm.formats.load",
    "load_model": "csm.formats.load",
}


def __getattr__(name: str) -> Any:
    # On first use: `import csm.config` alone must not cost the seconds that torch and its friends take.
    if name not in _HOMES:
        raise AttributeError(f"module 'csm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
