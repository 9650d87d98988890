"""Speaker diarization by Sortformer, of NVIDIA NeMo: at most four speakers, also at once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile

from csm.judges.hub import ModelUnavailable
from data_prep.config import DiarizeConfig
from data_prep.records import MODEL_RATE, Span
from data_prep.speech.pauses import Read

_OTHERWISE = "or set diarize.backend=cluster"


class Sortformer:
    """A loaded model.

    Raises ModelUnavailable if NeMo is not installed, or the weights are missing or do not load.
    """

    one_at_a_time = False

    def __init__(self, cfg: DiarizeConfig) -> None:
        model = cfg.sortformer
        try:
            from nemo.collections.asr.models import SortformerEncLabelModel
        except ImportError as error:
            raise ModelUnavailable(
                f"NeMo cannot be imported ({error}): pip install 'nemo_toolkit[asr]', {_OTHERWISE}"
            ) from error
        try:
            if model.endswith(".nemo"):
                found = SortformerEncLabelModel.restore_from(model, map_location=cfg.device, strict=False)
            else:
                found = SortformerEncLabelModel.from_pretrained(model, map_location=cfg.device)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelUnavailable(
                f"{model} does not load as a Sortformer model ({reason}): download its .nemo file and set "
                f"diarize.sortformer to it, {_OTHERWISE}"
            ) from error
        self._model: Any = found.to(cfg.device).eval()

    def speakers(self, read: Read, spans: Sequence[Span], seconds: float) -> list[tuple[float, float, str]]:
        """See `Diarizer.speakers`. Not all versions of NeMo take samples, so they are written to a file."""
        with tempfile.TemporaryDirectory(prefix="csm-sortformer-") as folder:
            path = Path(folder) / "track.wav"
            soundfile.write(path, read(0.0, seconds), MODEL_RATE, subtype="FLOAT")
            (lines,) = self._model.diarize(audio=[str(path)], batch_size=1, num_workers=0, verbose=False)
        fields = [line.split() for line in lines]  # "2.72 5.04 speaker_0"
        return sorted((float(start), float(end), who) for start, end, who in fields)
