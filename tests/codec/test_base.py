"""Codec identities and the batching of turns."""

import dataclasses
import json

import pytest
import torch

from csm.codec import CodecInfo, SpectralCodec, check_same_codec, encode_turns
from csm.codec.base import hash_tensors

INFO = CodecInfo("spectral", "0123456789abcdef", 12, 64, 12.5, 24_000)


def test_info_survives_json():
    assert CodecInfo.from_dict(json.loads(json.dumps(INFO.to_dict()))) == INFO
    with pytest.raises(ValueError, match="expected"):
        CodecInfo.from_dict({"name": "mimi"})


def test_codes_of_different_codecs_are_not_mixed():
    check_same_codec(INFO, dataclasses.replace(INFO), "dataset a and checkpoint b")
    other = dataclasses.replace(INFO, weights_hash="ffffffffffffffff", num_codebooks=8)
    with pytest.raises(ValueError, match=r"dataset a and checkpoint b: .*weights_hash .*num_codebooks 12 against 8"):
        check_same_codec(INFO, other, "dataset a and checkpoint b")


def test_hash_sees_names_values_shapes_and_dtypes_but_not_memory_layout():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    same = {"b": torch.ones(4), "a": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    assert hash_tensors(tensors) == hash_tensors(same)
    changed = [
        {**tensors, "b": torch.tensor([1.0, 1.0, 1.0, 1.0000001])},
        {**tensors, "b": torch.ones(2, 2)},
        {**tensors, "b": torch.ones(4).to(torch.bfloat16)},
        {"a": tensors["a"], "c": tensors["b"]},
    ]
    assert len({hash_tensors(t) for t in [tensors, *changed]}) == 5


def test_turns_come_back_in_their_order_and_batches_keep_to_their_budget(babble):
    codec = SpectralCodec.fit([babble(60_000, 0), babble(50_000, 1)], num_codebooks=3, codebook_size=16)
    sizes: list[tuple[int, int]] = []
    encode = codec.encode
    codec.encode = lambda audio: (sizes.append((audio.shape[0], audio.shape[2])), encode(audio))[1]
    lengths = [30_000, 1920, 90_000, 2000, 31_000, 1]
    codes = encode_turns(codec, [babble(n, n) for n in lengths], batch_seconds=2.6)
    assert [c.shape for c in codes] == [(3, -(-n // 1920)) for n in lengths]
    assert sum(rows for rows, _ in sizes) == len(lengths)
    assert all(rows == 1 or rows * samples <= 2.6 * 24_000 for rows, samples in sizes)
    assert len(sizes) == 3  # the three short ones, the two of about 30 000 samples, and the one beyond the budget


def test_empty_turns_are_named(babble):
    codec = SpectralCodec.fit([babble(60_000, 0)], num_codebooks=2, codebook_size=8)
    with pytest.raises(ValueError, match="turn 1: expected a non-empty 1-D waveform"):
        encode_turns(codec, [babble(2000, 0), torch.zeros(0)])
    assert encode_turns(codec, []) == []
