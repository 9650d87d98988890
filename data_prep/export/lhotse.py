"""Lhotse cuts of a dataset: cuts.<split>.jsonl.gz, which `lhotse.CutSet.from_file` reads.

A conversation is a cut of its original recording, a turn a supervision. Files are referred to where they are; audio
inside tar files and tables, or put together from several files, is written to audio/, as FLAC.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample
from data_prep.audio.recording import RecordingAudio
from data_prep.audio.storage import is_url
from data_prep.export.originals import UNREADABLE, Originals, by_recording, channels_of, flac
from data_prep.packing.conversation import key_stem
from data_prep.records import Locator


def export_lhotse(dataset: ShardedDataset, work: Path, to: Path, final: Path) -> Iterator[str]:
    """Writes the cuts of all splits below `to`, which will be moved to `final`.

    Yields a line for each conversation that has no audio any more.
    """
    originals = Originals(dataset, work)
    files: dict[str, Any] = {}
    written: dict[str, dict[str, Any]] = {}
    try:
        for number in by_recording(dataset, range(len(dataset))):
            sample = dataset.read(number)
            found = originals.of(sample)
            if found.audio is None:
                yield f"{sample.key}: {found.message}"
                continue
            try:
                if sample.recording not in written:
                    written[sample.recording] = _recording(found.audio, to, final)
            except UNREADABLE as error:
                yield f"{sample.key}: {error}"
                continue
            if sample.split not in files:
                files[sample.split] = gzip.open(  # noqa: SIM115
                    to / f"cuts.{sample.split}.jsonl.gz", "wt", encoding="utf-8"
                )
            files[sample.split].write(json.dumps(_cut(sample, written[sample.recording]), ensure_ascii=False) + "\n")
    finally:
        originals.close()
        for file in files.values():
            file.close()


def _recording(audio: RecordingAudio, to: Path, final: Path) -> dict[str, Any]:
    """A recording in Lhotse's form, whose audio is written below `to` if it is no file of its own."""
    recording = audio.recording
    path = recording.locator.path
    if recording.locator != Locator(path):
        file = to / "audio" / f"{key_stem(recording)}.flac"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(flac(audio, list(range(recording.channels)), 0.0, None))
        path = str(final.absolute() / "audio" / file.name)
    elif not is_url(path) and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    channels = list(range(recording.channels))
    return {
        "id": recording.id,
        "sources": [{"type": "url" if is_url(path) else "file", "channels": channels, "source": path}],
        "sampling_rate": recording.sample_rate,
        "num_samples": round(recording.seconds * recording.sample_rate),
        "duration": recording.seconds,
        "channel_ids": channels,
    }


def _cut(sample: Sample, recording: dict[str, Any]) -> dict[str, Any]:
    used = channels_of(sample) or recording["channel_ids"]
    several = len(used) > 1
    channel = used if several else used[0]
    end = min(sample.end, recording["duration"])
    return {
        "id": sample.key,
        "start": sample.start,
        "duration": round(end - sample.start, 6),
        "channel": channel,
        "supervisions": [
            {
                "id": f"{sample.key}-{number}",
                "recording_id": sample.recording,
                "start": round(turn.start - sample.start, 6),
                "duration": round(min(turn.end, end) - turn.start, 6),
                "channel": channel if turn.channel is None else turn.channel,
                "text": turn.text,
                "language": sample.lang,
                "speaker": f"{sample.recording}-{turn.speaker}",
                "custom": {"loss": turn.loss},
            }
            for number, turn in enumerate(sample.turns)
        ],
        "recording": recording,
        "custom": {"group": sample.group, "licence": sample.licence, "source": sample.source},
        "type": "MultiCut" if several else "MonoCut",
    }
