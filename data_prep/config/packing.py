"""Options of the dataset: duplicates, conversations, shards, report, export."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass
class DedupConfig:
    """Removal of duplicates while packing."""

    exact: bool = True
    """Reject recordings whose audio equals another's."""
    fingerprint: bool = True
    """Reject turns whose fingerprint is nearly the same as another's."""
    fingerprint_min_seconds: float = 5.0
    """Shorter turns are not compared by fingerprint."""
    max_bit_error: float = 0.15
    """Share of fingerprint bits in which duplicates may differ."""
    text: bool = False
    """Reject recordings whose text is nearly the same as another's."""
    text_threshold: float = 0.8
    """Jaccard similarity of 5-word shingles from which texts are duplicates."""
    text_min_words: int = 50
    """Shorter texts are not compared."""


@dataclass
class ConversationConfig:
    """From turns to conversations, the samples of the dataset."""

    max_seq_len: int = 2048
    """Longest conversation in positions of a row; text is estimated at 3.2 bytes per token."""
    max_seconds: float = 120.0
    """Largest amount of speech in a conversation."""
    max_turns: int = 64
    """Largest number of turns in a conversation."""
    max_gap_seconds: float = 8.0
    """A longer silence ends a conversation."""
    min_turns: int = 1
    """Reject conversations with fewer turns."""
    min_seconds: float = 0.0
    """Reject conversations with less speech."""
    context_overlap: float | None = 0.15
    """A turn with a larger share of overlapped speech is context only (loss=false); null: off."""
    max_overlap: float | None = 0.5
    """Reject a turn with a larger share of overlapped speech; null: off."""
    context_ovrl: float | None = None
    """A turn with a lower DNSMOS OVRL is context only; null: off."""


@dataclass
class PackConfig:
    """Shards and splits."""

    shard_mb: float = 512.0
    """Close a shard once it holds this many 10^6 bytes."""
    val_fraction: float = 0.0
    """Share of groups (by a hash of the group's name) that go to split "val", where the data give no splits. Without
    "val", training neither validates nor speaks samples."""
    workers: int = 0
    """Processes; 0: one per processor, or a single one for little work."""


@dataclass
class ReportConfig:
    """The dataset's report page."""

    conversations: int = 20
    """Conversations to listen to, drawn by `seed` and decoded by the codec."""


class ExportFormat(Enum):
    lhotse = "lhotse"
    """Cuts of the original recordings, as JSON lines."""
    huggingface = "huggingface"
    """Parquet files with the audio of each conversation, its turns and codes."""


@dataclass
class ExportConfig:
    """The command `export`."""

    format: ExportFormat = ExportFormat.lhotse
    """Form in which the dataset is written."""
    to: str | None = None
    """Folder to write; null: <output>.<format>."""
