"""A training and research framework for CSM, the Conversational Speech Model.

from csm import load_generator, Segment

generator = load_generator("runs/quickstart/export")
audio = generator.generate("Message marked urgent.", speaker=0, context=[])
"""

from csm.checkpoint.native import load_generator, load_model
from csm.config import CSMConfig
from csm.inference.generator import GeneratedSegment, Generator, Segment
from csm.model.csm import CSM

__all__ = ["CSM", "CSMConfig", "GeneratedSegment", "Generator", "Segment", "load_generator", "load_model"]
__version__ = "0.1.0"
