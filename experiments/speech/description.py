"""The description of an experiment on speech, `experiments/NAME/speech.yaml`: arms as words for evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from csm.quantization.schemes import SCHEMES
from experiments.arms.experiment import EXPERIMENTS, check_arms

DESCRIPTION = "speech.yaml"


@dataclass
class SpeechExperiment:
    """Content of speech.yaml."""

    title: str = MISSING
    """Heading of the page."""
    question: str = MISSING
    """Question of the experiment."""
    base: list[str] = field(default_factory=list)
    """Words for evaluate.py that all arms have in common."""
    arms: dict[str, list[str]] = field(default_factory=dict)
    """Name of each arm -> its words, which follow those of `base`."""
    quantized: dict[str, str] = field(default_factory=dict)
    """Arms that speak with quantized weights -> their scheme."""
    reference: str = MISSING
    """The arm that the others are compared with."""


def read_description(folder: Path) -> SpeechExperiment:
    """Reads `folder`/speech.yaml. Raises ValueError, and OmegaConf's errors, for what cannot be run."""
    path = folder / DESCRIPTION
    if not path.is_file():
        named = ", ".join(sorted(file.parent.name for file in EXPERIMENTS.glob(f"*/{DESCRIPTION}")))
        raise ValueError(f"{path} does not exist; experiments on speech are {named}, or a folder with such a file")
    merged = OmegaConf.merge(OmegaConf.structured(SpeechExperiment), OmegaConf.load(path))
    experiment = OmegaConf.to_object(merged)
    assert isinstance(experiment, SpeechExperiment)
    check_arms(list(experiment.arms), experiment.reference, str(path))
    for arm, scheme in experiment.quantized.items():
        if arm not in experiment.arms or scheme not in SCHEMES:
            raise ValueError(f"{path}: quantized: {{{arm}: {scheme}}} must name an arm and one of {', '.join(SCHEMES)}")
    return experiment
