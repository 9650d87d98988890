"""A dataset of the demo recordings with all of its tables, made without running any stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from csm.audio import load_audio
from csm.codec import SpectralCodec, encode_turns
from csm.data.dataset import ShardedDataset
from csm.data.sample import Event, Sample, Turn
from data_prep.dataset.index import CODEC_FILE, file_info, write_dataset_json
from data_prep.demo import MANIFEST
from data_prep.reasons import Reason
from data_prep.records import Duplicate, LedgerRow, Rejection, StageTime
from data_prep.tables import write_rows
from tests.data.made_datasets import write_dataset

HOSTILE = "<script>alert('no')</script> & <b>bold</b>"


def demo_samples(codec: SpectralCodec, count: int) -> list[Sample]:
    """Conversations of the first `count` demo recordings, with measures drawn at random."""
    rng = np.random.default_rng(0)
    samples = []
    for line in MANIFEST.read_text().splitlines()[:count]:
        recording = json.loads(line)
        audio = load_audio(MANIFEST.parent / recording["audio"], codec.sample_rate)
        given = recording["turns"]
        pieces = [audio[round(t["start"] * 24000) : round((t["end"] or 1e9) * 24000)] for t in given]
        turns, codes, end = [], encode_turns(codec, pieces), 0.0
        for number, (turn, code) in enumerate(zip(given, codes, strict=True)):
            q = {"ovrl": round(rng.normal(3, 0.3), 2), "lufs": round(rng.normal(-23, 3), 1)}
            bandwidth = 3700.0 if len(samples) % 4 == 0 else 7800.0
            start, stop = turn["start"] - 0.4 * (number == 2), turn["end"]
            turns.append(
                Turn(
                    turn["speaker"], turn["text"], start, stop, sum(t.num_frames for t in turns), code.shape[1],
                    loss=number != 1, channel=None, gap=round(start - end, 3), overlap=0.1 * (number == 2),
                    quality=q | {"bandwidth": bandwidth},
                )
            )  # fmt: skip
            end = stop
        name = recording["id"]
        sample = Sample(
            f"demo-{name}", "demo", f"demo/{name}", f"show-{len(samples) % 3}", "val" if len(samples) < 2 else "train",
            "en", "CC-BY-SA-3.0", codec.info, turns, torch.cat(codes, dim=1).numpy().astype(np.uint16),
            audio=recording["audio"], sample_rate=16000, channels=1, bandwidth=bandwidth,
            events=[Event(turns[0].start + 0.5, 7, "backchannel", "mhm")],
        )  # fmt: skip
        samples.append(sample)
    return samples


def fitted_codec() -> SpectralCodec:
    names = ("leave-message", "urgent", "nobody")
    waveforms = [load_audio(MANIFEST.parent / f"{name}.flac", 24000) for name in names]
    return SpectralCodec.fit(waveforms, num_codebooks=5, codebook_size=23, seed=0)


def write_report_dataset(folder: Path, samples: list[Sample], codec: SpectralCodec | None) -> Path:
    """The dataset without its tables, with the codec if there is one."""
    write_dataset(folder, samples, shard_bytes=8_000)
    if codec is not None:
        codec.save(folder / CODEC_FILE)
    info = ShardedDataset(folder).info
    write_dataset_json(
        folder,
        source=info.source,
        codec=info.codec,
        codec_file=file_info(folder / CODEC_FILE) if codec is not None else None,
        audio_root=str(MANIFEST.parent),
        index=info.index,
        shards=info.shards,
        rejected={},
    )
    return folder


def ledger_rows(samples: list[Sample]) -> list[LedgerRow]:
    """Rows of kept turns, and of three ways of losing some."""
    rows = []
    for number, sample in enumerate(samples):
        kept = round(1000 * sum(turn.end - turn.start for turn in sample.turns))
        base = LedgerRow(sample.source, sample.lang, sample.recording, "kept", "", kept)
        rows += [base, replace(base, stage="vad", reason="no_speech", ms=333 + number)]
        if number % 3 == 0:
            rows.append(replace(base, stage="pack", reason="quality", ms=1001))
    lost = LedgerRow("noise", "de", "noise/hall", "plan", "audio_corrupt", 7007)
    return [*rows, lost, replace(lost, recording="noise/hum", stage="transcribe", reason="crashed", ms=60_013)]


def rejects(samples: list[Sample]) -> list[Rejection]:
    rows = [
        Rejection(
            source="demo",
            recording=sample.recording,
            audio=sample.audio,
            turn=7,
            stage="pack",
            reason=Reason.quality,
            message=f"OVRL of {HOSTILE} is low",
            start=1.5,
            end=2.5,
        )
        for sample in samples
    ]
    corrupt = Rejection(
        source="noise",
        recording="noise/hall",
        audio="häll 🎧.wav",
        stage="plan",
        reason=Reason.audio_corrupt,
        message="no audio",
    )
    crashed = replace(corrupt, recording="noise/hum", audio="hum.wav", stage="transcribe", reason=Reason.crashed)
    return [*rows, corrupt, replace(crashed, message="died 3 times")]


def write_tables(folder: Path, samples: list[Sample]) -> None:
    """Ledger, rejects, duplicates and stage times."""
    write_rows(folder / "ledger.parquet", ledger_rows(samples), LedgerRow)
    write_rows(folder / "rejects.parquet", rejects(samples), Rejection)
    copies = [
        Duplicate(f"copies/{number}", turn, reason, "demo/urgent", turn, similarity)
        for number, (turn, reason, similarity) in enumerate(
            [(3, "duplicate_audio", 0.9), (3, "duplicate_audio", 0.875), (None, "duplicate_text", 1.0)]
        )
    ]
    write_rows(folder / "duplicates.parquet", copies, Duplicate)
    times = [StageTime("encode", f"unit-{i}", "spectral", 12, 100.0 * (i + 1), 2.0, 1.5, "cpu") for i in range(2)]
    times.insert(0, StageTime("vad", "unit-0", "silero", 12, 100.0, 0.5, 0.5, "cpu"))
    write_rows(folder / "stages.parquet", times, StageTime)
