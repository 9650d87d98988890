"""Speaker diarization by pyannote.audio, whose weights come from the hub (gated) or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from csm.judges.hub import ModelUnavailable
from data_prep.config import DiarizeConfig
from data_prep.records import MODEL_RATE, Span
from data_prep.speech.pauses import Read

_CONFIG = "config.yaml"


def is_available(model: str) -> bool:
    """Whether pyannote.audio is installed with its dependencies, and `model` is a folder or in the hub's cache."""
    if find_spec("pyannote") is None or any(
        find_spec(f"pyannote.{part}") is None for part in ("audio", "core", "pipeline")
    ):
        return False
    return (Path(model) / _CONFIG).is_file() or (
        model.count("/") == 1 and isinstance(try_to_load_from_cache(model, _CONFIG), str)
    )


class Pyannote:
    """A loaded pipeline.

    Raises:
        ModelUnavailable: pyannote.audio is not installed, or the pipeline does not load.
        FileNotFoundError: its weights are not on this machine and cannot be downloaded.
    """

    one_at_a_time = False

    def __init__(self, cfg: DiarizeConfig) -> None:
        model = cfg.pyannote
        try:
            from pyannote.audio import Pipeline
            from pyannote.audio.telemetry import set_telemetry_metrics
        except ImportError as error:
            raise ModelUnavailable(
                f"pyannote.audio cannot be imported ({error}): pip install pyannote.audio, "
                "or set diarize.backend=cluster"
            ) from error
        set_telemetry_metrics(False)
        try:
            pipeline = Pipeline.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelUnavailable(f"{model} does not load as a pyannote pipeline: {reason}") from error
        if pipeline is None:  # how the library reports that it could not download
            raise FileNotFoundError(
                f"{model}: no such folder, and it cannot be downloaded from the hub; accept its terms there and log in "
                "with `hf auth login`, or download it and set diarize.pyannote to the folder"
            )
        self._pipeline: Any = pipeline.to(torch.device(cfg.device))
        self._max_speakers = cfg.max_speakers

    def speakers(self, read: Read, spans: Sequence[Span], seconds: float) -> list[tuple[float, float, str]]:
        """See `Diarizer.speakers`; two overlap where they speak at once."""
        audio = {"waveform": torch.from_numpy(read(0.0, seconds))[None], "sample_rate": MODEL_RATE}
        # The diarization with overlaps, not the exclusive one: words go to the speaker they overlap most in any case,
        # and overlapping speech must be known.
        found = self._pipeline(audio, max_speakers=self._max_speakers).speaker_diarization
        return sorted((turn.start, turn.end, str(who)) for turn, _, who in found.itertracks(yield_label=True))
