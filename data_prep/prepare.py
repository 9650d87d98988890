"""Recordings -> a dataset folder, from beginning to end on one machine."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from csm.codec import Codec, CodecInfo, SpectralCodec, load_codec
from csm.codec.mel import SAMPLE_RATE as SPECTRAL_SAMPLE_RATE
from csm.config import CodecKind, DataPrepConfig
from csm.data.dataset import DatasetInfo
from csm.data.sample import Sample, Turn
from csm.files import sync
from data_prep.conversation import number_speakers, slug, split_of
from data_prep.cut import CutTurn, cut_turns
from data_prep.encode import EncodedTurn, encode_recordings
from data_prep.index import CODEC_FILE, file_info, write_dataset_json
from data_prep.manifest import Recording, read_input
from data_prep.output import output_folder
from data_prep.pack import write_shards
from data_prep.rejects import REJECTS_FILE, Rejects
from data_prep.staging import StagedUnit


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
        staging = folder / "staging"
        staging.mkdir()
        with StagedUnit(staging, "all") as staged:
            cut = _cut_all(recordings, cfg, codec.sample_rate, rejects)
            for recording, turns in encode_recordings(cut, codec, cfg.batch_seconds, rejects):
                for sample in make_samples(recording, turns, codec.info, cfg):
                    staged.add(sample)
        if sum(rejects.counts().values()) == sum(len(recording.turns) for recording in recordings):
            raise ValueError(_nothing_kept(cfg, rejects))
        shards, index = write_shards(staging, folder, cfg.source, round(cfg.shard_mb * 1e6), cfg.seed, workers=1)
        shutil.rmtree(staging)
        rejects.write(folder / REJECTS_FILE)
        sync(folder / REJECTS_FILE)
        dataset = write_dataset_json(
            folder,
            source=cfg.source,
            codec=codec.info,
            codec_file=file_info(codec_file) if codec_file else None,
            audio_root=str(audio_root.resolve()),
            index=index,
            shards=shards,
            rejected=rejects.counts(),
        )
    turns_kept = sum(split["turns"] for split in dataset.totals.values())
    turns_in = sum(len(recording.turns) for recording in recordings)
    assert turns_in == turns_kept + sum(rejects.counts().values()), "every turn is either kept or rejected"
    return Prepared(dataset, turns_in, turns_kept, rejects.counts())


def split_conversations(turns: list[EncodedTurn | None], max_seconds: float, max_turns: int) -> list[list[EncodedTurn]]:
    """Divides consecutive turns into conversations of at most `max_seconds` of speech and `max_turns` turns.

    A rejected turn (None) ends a conversation: what was said before and after it is never joined. A single turn
    longer than `max_seconds` is a conversation of its own.
    """
    conversations: list[list[EncodedTurn]] = []
    current: list[EncodedTurn] = []
    seconds = 0.0
    for turn in turns:
        length = turn.end - turn.start if turn else 0.0
        if current and (turn is None or len(current) == max_turns or seconds + length > max_seconds):
            conversations.append(current)
            current, seconds = [], 0.0
        if turn:
            current.append(turn)
            seconds += length
    return [*conversations, current] if current else conversations


def make_samples(
    recording: Recording, turns: list[EncodedTurn | None], codec: CodecInfo, cfg: DataPrepConfig
) -> list[Sample]:
    """The conversations of a recording as samples, in order."""
    split = split_of(recording, cfg.val_fraction, cfg.seed)
    # The hash keeps keys apart whose ids look alike once reduced to the characters that keys may have.
    stem = f"{slug(cfg.source, 20)}-{slug(recording.id, 32)}-{hashlib.sha256(recording.id.encode()).hexdigest()[:8]}"
    samples = []
    for number, conversation in enumerate(split_conversations(turns, cfg.max_conversation_seconds, cfg.max_turns)):
        speakers = number_speakers([encoded.turn.speaker for encoded in conversation])
        stored, frame = [], 0
        for encoded, speaker in zip(conversation, speakers, strict=True):
            frames, source = encoded.codes.shape[1], encoded.turn
            turn = Turn(
                speaker, source.text, encoded.start, encoded.end, frame, frames, loss=True, channel=source.channel
            )
            stored.append(turn)
            frame += frames
        samples.append(
            Sample(
                key=f"{stem}-{number:05d}",
                source=cfg.source,
                recording=recording.id,
                group=recording.group,
                split=split,
                lang=cfg.lang,
                licence=cfg.licence,
                codec=codec,
                turns=stored,
                codes=np.concatenate([encoded.codes for encoded in conversation], axis=1),
                audio=recording.audio,
            )
        )
    return samples


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
