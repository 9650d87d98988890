"""Options of the recordings: where they are, and how they are planned."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class SourceConfig:
    """A set of recordings."""

    input: str = MISSING
    """Folder, manifest (.jsonl or .parquet), .tar file(s) or Hugging Face audio dataset."""
    lang: str | None = "en"
    """Language of the recordings, as Whisper's code (en, de, ...); null: detected by speech recognition."""
    licence: str = "unknown"
    """Licence, stored with every sample."""
    group_pattern: str | None = None
    """Regular expression with one group that finds the show or caller in the audio's path."""
    text_column: str | None = None
    """Text column of a Hugging Face dataset; null: the first known name, see data_prep/inputs/parquet.py."""
    two_channel: str = "auto"
    """auto: two channels that differ are two speakers; yes: always; no: channels are mixed."""
    format: str | None = None
    """Layout of the data, such as `kaldi` or `nemo` (docs/data.md); null: found by itself."""
    min_dnsmos: float | None = None
    """Reject recordings to which their annotation gives a lower DNSMOS, as Emilia's does; null: none."""


@dataclass
class PlanConfig:
    """Probing of recordings and their division into units of work."""

    unit_hours: float = 4.0
    """Most hours of audio per unit, the work that a worker takes at a time; a longer recording is a unit of its own."""
    min_seconds: float = 0.1
    """Reject shorter recordings."""
    max_hours: float = 11.0
    """Reject longer recordings."""
    update: bool = False
    """Add new recordings to an existing plan, in units of their own, and plan changed ones again."""
    strict: bool = False
    """End with an error if anything is set aside, left out, or lacks its audio or annotation; also `--strict`."""
    workers: int = 0
    """Threads that probe and hash; 0: one per processor."""
