import json
from dataclasses import replace

import numpy as np
import pytest

from csm.codec.base import CodecInfo
from csm.data.sample import Event, Sample, Turn, sample_from_members, sample_to_members, validate_sample

CODEC = CodecInfo("spectral", "0123456789abcdef", num_codebooks=3, codebook_size=11, frame_rate=12.5, sample_rate=24000)


@pytest.fixture
def sample() -> Sample:
    codes = np.random.default_rng(0).integers(1, 11, (3, 9)).astype(np.uint16)
    codes[0] = 0  # code 0 is a real code; only a frame of nothing but zeros is not
    turns = [
        Turn(4, "Grüß dich, “quotes” and [brackets]\n", 0.1, 0.4, 0, 4),
        Turn(
            *(2, "second", 0.3, 0.7, 4, 5),
            loss=False,
            channel=1,
            gap=-0.1,
            overlap=0.1,
            words=[["second", 0.3, 0.7, None]],
            quality={"ovrl": 3.25},
        ),
    ]
    return Sample(
        "src-rec-00000",
        "src",
        "Rec/1",
        "show 7",
        "train",
        "de",
        "cc0",
        CODEC,
        turns,
        codes,
        "a b.wav",
        events=[Event(0.2, 2, "backchannel", "mhm")],
        next="src-rec-00001",
    )


def test_round_trip_is_exact_and_bytes_are_reproducible(sample):
    members = sample_to_members(sample)
    back = sample_from_members(members["codes.npy"], members["json"], "here")
    assert back.codes.dtype == np.uint16 and np.array_equal(back.codes, sample.codes)
    for name in vars(sample).keys() - {"codes"}:
        assert getattr(back, name) == getattr(sample, name)
    assert sample_to_members(back) == members


def with_code(sample, row, column, value):
    codes = sample.codes.copy()
    codes[row, column] = value
    return codes


BROKEN = {
    "out of range: spectral has codes 0..10": lambda s: replace(s, codes=with_code(s, 2, 5, 11)),
    "frame 6 is all zeros": lambda s: replace(s, codes=with_code(s, slice(None), 6, 0)),
    "codes are uint16 (2, 9)": lambda s: replace(s, codes=s.codes[:2]),
    "codes are int64": lambda s: replace(s, codes=s.codes.astype(np.int64)),
    "turns cover 9 frames, codes hold 8": lambda s: replace(s, codes=s.codes[:, :8]),
    "turn 1 has frames 5+5": lambda s: replace(s, turns=[s.turns[0], replace(s.turns[1], start_frame=5)]),
    "turn 0 has an empty text": lambda s: replace(s, turns=[replace(s.turns[0], text=" \n"), s.turns[1]]),
    "turn 1 has times 0.05..0.7": lambda s: replace(s, turns=[s.turns[0], replace(s.turns[1], start=0.05)]),
    "turn 0 has times 0.4..0.4": lambda s: replace(s, turns=[replace(s.turns[0], start=0.4), s.turns[1]]),
    "has no turns": lambda s: replace(s, turns=[]),
    "key 'a.b'": lambda s: replace(s, key="a.b"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_sample_is_refused_with_place_problem_and_remedy(sample, message):
    with pytest.raises(ValueError) as error:
        validate_sample(BROKEN[message](sample), "train-0.tar, sample k")
    text = str(error.value)
    assert text.startswith("train-0.tar, sample k: ") and message in text and "prepare the dataset again" in text
    with pytest.raises(ValueError):  # nor is it ever written
        sample_to_members(BROKEN[message](sample))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema=99), "schema version 99"),
        (lambda record: record.pop("schema"), "not a sample record"),
        (lambda record: record.pop("group"), "group"),
        (lambda record: record["turns"][0].update(word=[]), "word"),
        (lambda record: record["codec"].pop("name"), "codec info"),
        (lambda record: record.update(num_speakers=3), "says num_speakers 3, its turns say 2"),
        (lambda record: record["turns"][0].update(start="0.1"), "cannot be read as a sample"),
    ],
)
def test_record_of_another_layout_is_refused(sample, change, message):
    members = sample_to_members(sample)
    record = json.loads(members["json"])
    change(record)
    with pytest.raises(ValueError, match=message) as error:
        sample_from_members(members["codes.npy"], json.dumps(record).encode(), "x.tar, sample k")
    assert str(error.value).startswith("x.tar, sample k: ")


def test_numbers_that_are_none_are_not_written(sample):
    sample.turns[0].quality = {"ovrl": float("nan")}
    with pytest.raises(ValueError, match="src-rec-00000: holds a number that is not finite"):
        sample_to_members(sample)


def test_damaged_members_are_refused(sample):
    members = sample_to_members(sample)
    with pytest.raises(ValueError, match=r"^x\.tar, sample k: cannot be read as a sample"):
        sample_from_members(members["codes.npy"][:-4], members["json"], "x.tar, sample k")
    with pytest.raises(ValueError, match=r"^x\.tar, sample k: its json member"):
        sample_from_members(members["codes.npy"], members["json"][:-1], "x.tar, sample k")


def test_schema_2_is_still_read(sample):
    members = sample_to_members(sample)
    record = json.loads(members["json"])
    old_names = {"speaker": "spk", "start_frame": "f0", "num_frames": "nf", "quality": "q"}
    for part in ("turns", "events"):
        record[part] = [{old_names.get(name, name): value for name, value in entry.items()} for entry in record[part]]
    old = json.dumps(record | {"schema": 2}).encode()
    read = sample_from_members(members["codes.npy"], old, "old")
    assert read.turns == sample.turns and read.events == sample.events and read.events
    assert np.array_equal(read.codes, sample.codes)
