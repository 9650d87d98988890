"""`encode.shifts`: training has every conversation several times, its frames cut elsewhere."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from made_recordings import calls_manifest, noise, turn, write_manifest

from csm.audio import load_audio
from csm.codec import SpectralCodec
from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample
from data_prep.dataset.verify import verify
from data_prep.prepare import check_options, prepare

FRAME = 1920  # samples of the codec, at 24 kHz


def test_every_training_conversation_is_there_in_other_codes(config, tmp_path: Path) -> None:
    prepare(config(calls_manifest(tmp_path), **{"encode.shifts": 4}))
    dataset = ShardedDataset(tmp_path / "out")
    codec = SpectralCodec.load(dataset.codec_file)
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in map(dataset.read, range(len(dataset))):
        found[sample.recording].append(sample)
    assert sorted(len(samples) for samples in found.values()) == [1, 4, 4, 4, 4]  # the fifth is of split val
    for samples in found.values():
        samples.sort(key=lambda sample: sample.key)
        audio = load_audio(dataset.audio_path(samples[0]), 24_000)
        for shift, sample in enumerate(samples):
            assert sample.key.endswith(f"-s{shift}") == (shift > 0)
            assert [turn.text for turn in sample.turns] == [turn.text for turn in samples[0].turns]
            for stored in sample.turns:
                begin = round(stored.start * 24_000) - shift * FRAME // 4
                codes = codec.encode(audio[begin : round(stored.end * 24_000)][None, None])[0].numpy()
                kept = sample.codes[:, stored.start_frame : stored.start_frame + stored.num_frames]
                # The tracks are read at 16 kHz and resampled piece by piece: the edges differ in the last bits.
                assert kept.shape == codes.shape and (kept[:, 1:-1] == codes[:, 1:-1]).mean() > 0.9
        first = [sample.codes[:, :12] for sample in samples]
        assert all((first[0] != other).mean() > 0.5 for other in first[1:])
    assert verify(tmp_path / "out", workers=1) == []


def test_before_a_recording_is_silence(config, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(2.0, 24_000, 3), 24_000)
    rows = [{"audio": "a.wav", "split": "train", "turns": [turn(0, 0.0, 1.5)]}]
    prepare(config(write_manifest(tmp_path / "one.jsonl", rows), **{"encode.shifts": 2}))
    dataset = ShardedDataset(tmp_path / "out")
    codec = SpectralCodec.load(dataset.codec_file)
    shifted = next(s for s in map(dataset.read, range(2)) if s.key.endswith("-s1"))
    audio = load_audio(tmp_path / "a.wav", 24_000)[: round(1.5 * 24_000)]
    late = torch.cat([torch.zeros(FRAME // 2), audio])
    assert np.array_equal(shifted.codes, codec.encode(late[None, None])[0].numpy())


def test_there_is_at_least_one(config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encode\.shifts=0 must be greater than 0"):
        check_options(config(tmp_path, **{"encode.shifts": 0}))
