"""Recordings -> a dataset folder, from beginning to end on one machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import Tensor

from csm.codec import Codec, SpectralCodec, load_codec
from csm.codec.mel import SAMPLE_RATE as SPECTRAL_SAMPLE_RATE
from csm.config import CodecKind, DataPrepConfig
from csm.data.dataset import DatasetInfo
from csm.files import sync
from data_prep.conversation import make_samples, split_of
from data_prep.cut import CutTurn, cut_turns
from data_prep.encode import encode_recordings
from data_prep.index import write_dataset_json, write_index
from data_prep.manifest import Recording, read_input
from data_prep.output import output_folder
from data_prep.pack import Staging, write_shards
from data_prep.rejects import REJECTS_FILE, Rejects

CODEC_FILE = "codec.safetensors"


@dataclass
class Prepared:
    """What became of the input; `turns_in` = kept turns + rejected turns."""

    dataset: DatasetInfo
    turns_in: int
    turns_kept: int
    rejected: dict[str, int]  # reason -> turns


def prepare(cfg: DataPrepConfig) -> Prepared:
    """Reads `cfg.input`, writes the dataset `cfg.output`; see `DataPrepConfig` for the options.

    Raises:
        FileNotFoundError: the input or the codec's weights are not there.
        ValueError: the manifest breaks its format, the output exists, or no turn at all could be kept.
    """
    _check_options(cfg)
    input_path, output = Path(cfg.input), Path(cfg.output)
    recordings = read_input(input_path)[: cfg.limit]
    audio_root = input_path if input_path.is_dir() else input_path.parent
    rejects = Rejects()
    with output_folder(output, cfg.overwrite) as folder:
        codec = _make_codec(cfg, recordings)
        codec_file = None
        if isinstance(codec, SpectralCodec):
            codec_file = folder / CODEC_FILE
            codec.save(codec_file)
            sync(codec_file)
        with Staging(folder) as staging:
            cut = _cut_all(recordings, cfg, codec.sample_rate, rejects)
            for recording, turns in encode_recordings(cut, codec, cfg.batch_seconds, rejects):
                for sample in make_samples(recording, turns, codec.info, cfg):
                    staging.add(sample)
            if not staging.samples:
                raise ValueError(_nothing_kept(cfg, rejects))
            shards = write_shards(staging, folder, cfg.source, round(cfg.shard_mb * 1e6), cfg.seed)
        rejects.write(folder / REJECTS_FILE)
        sync(folder / REJECTS_FILE)
        index = write_index(folder, shards)
        dataset = write_dataset_json(folder, cfg, audio_root, codec.info, codec_file, index, shards, rejects.counts())
    turns_kept = sum(split["turns"] for split in dataset.totals.values())
    turns_in = sum(len(recording.turns) for recording in recordings)
    assert turns_in == turns_kept + sum(rejects.counts().values()), "every turn is either kept or rejected"
    return Prepared(dataset, turns_in, turns_kept, rejects.counts())


def _cut_all(
    recordings: list[Recording], cfg: DataPrepConfig, sample_rate: int, rejects: Rejects
) -> Iterator[tuple[Recording, list[CutTurn | None]]]:
    for recording in track(recordings, "Encoding recordings", console=Console(stderr=True)):
        turns = cut_turns(recording, cfg, sample_rate, rejects)
        if turns is not None:
            yield recording, turns


def _make_codec(cfg: DataPrepConfig, recordings: list[Recording]) -> Codec:
    if cfg.codec.kind is not CodecKind.spectral or cfg.codec.path is not None:
        return load_codec(cfg.codec)
    training = [recording for recording in recordings if split_of(recording, cfg.val_fraction, cfg.seed) == "train"]
    if not training:
        raise ValueError(
            f"{cfg.input}: no recording is in split train, so there is nothing to fit the spectral codec to; "
            "give codec.path=FILE of a codec fitted to other data"
        )
    rejects = Rejects()
    waveforms = _fitting_waveforms(training, cfg, rejects)
    first = next(waveforms, None)
    if first is None:
        raise ValueError(_nothing_kept(cfg, rejects))
    return SpectralCodec.fit(chain([first], waveforms), cfg.codec.num_codebooks, cfg.codec.codebook_size, cfg.seed)


def _fitting_waveforms(training: list[Recording], cfg: DataPrepConfig, rejects: Rejects) -> Iterator[Tensor]:
    """Turns of recordings in an order drawn from the seed, up to `cfg.codec_fit_minutes`.

    The `rejects` of this pass are not the dataset's: every recording is read again to be encoded.
    """
    shuffled = sorted(
        training, key=lambda recording: hashlib.sha256(f"{cfg.seed}/fit/{recording.id}".encode()).digest()
    )
    budget = cfg.codec_fit_minutes * 60 * SPECTRAL_SAMPLE_RATE
    for recording in track(shuffled, "Fitting the codec  ", console=Console(stderr=True)):
        if budget <= 0:
            break
        for turn in cut_turns(recording, cfg, SPECTRAL_SAMPLE_RATE, rejects) or []:
            if turn:
                budget -= turn.waveform.numel()
                yield turn.waveform


def _nothing_kept(cfg: DataPrepConfig, rejects: Rejects) -> str:
    counts = ", ".join(f"{reason} {count}" for reason, count in rejects.counts().items())
    first = rejects.rows[0]
    return f"{cfg.input}: no turn could be kept ({counts}); the first: recording {first.recording}: {first.message}"


def _check_options(cfg: DataPrepConfig) -> None:
    if not 0 <= cfg.val_fraction <= 1:
        raise ValueError(f"val_fraction={cfg.val_fraction} must lie in 0..1")
    for name in ("shard_mb", "max_turns", "batch_seconds", "max_turn_seconds", "max_conversation_seconds"):
        if getattr(cfg, name) <= 0:
            raise ValueError(f"{name}={getattr(cfg, name)} must be greater than 0")
    if cfg.limit is not None and cfg.limit <= 0:
        raise ValueError(f"limit={cfg.limit} must be greater than 0, or null for all recordings")
