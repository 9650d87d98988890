"""The diarizers of stage `diarize`, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from csm.judges.hub import ModelUnavailable
from csm.judges.speaker import Resemblyzer
from data_prep.config import DiarizeBackend, DiarizeConfig
from data_prep.records import Span
from data_prep.speech.clustering import cluster_speakers
from data_prep.speech.pauses import Read


class Diarizer(Protocol):
    """Finds who speaks when on one track of a recording."""

    one_at_a_time: bool
    """Whether it gives one speaker at a time, so that nothing is known of overlap."""

    def speakers(self, read: Read, spans: Sequence[Span], seconds: float) -> list[tuple[float, float, str]]:
        """(start, end, speaker) by start.

        Args:
            read: samples of the track at 16 kHz, from start to end seconds.
            spans: where voice activity detection found speech, by start.
            seconds: length of the recording.
        """
        ...


class Single:
    """One speaker, for audio books and single voices."""

    one_at_a_time = True

    def speakers(self, read: Read, spans: Sequence[Span], seconds: float) -> list[tuple[float, float, str]]:
        return [(span.start, span.end, "one") for span in spans]


class Cluster:
    """Clustered embeddings of voices, see speech/clustering.py.

    Raises ModelUnavailable if the encoder's package is missing.
    """

    one_at_a_time = True

    def __init__(self, cfg: DiarizeConfig) -> None:
        self._cfg = cfg
        try:
            self._encoder = Resemblyzer(cfg.device)
        except ModelUnavailable as error:
            raise ModelUnavailable(f"{error}, or set diarize.backend=single") from error

    def speakers(self, read: Read, spans: Sequence[Span], seconds: float) -> list[tuple[float, float, str]]:
        found = cluster_speakers(self._encoder, read, spans, self._cfg)
        return [(start, end, str(who)) for start, end, who in found]


def load_diarizer(cfg: DiarizeConfig) -> Diarizer:
    """The diarizer of `cfg.backend`, which must not be `auto`, with its model loaded.

    Raises ModelUnavailable or FileNotFoundError (one line) if its package or weights are missing.
    """
    if cfg.backend is DiarizeBackend.pyannote:
        from data_prep.stages.pyannote import Pyannote  # models that few have

        return Pyannote(cfg)
    if cfg.backend is DiarizeBackend.sortformer:
        from data_prep.stages.sortformer import Sortformer

        return Sortformer(cfg)
    return Cluster(cfg) if cfg.backend is DiarizeBackend.cluster else Single()
