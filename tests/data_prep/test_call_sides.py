"""Transcripts whose speakers, A and B, are the sides of a two-channel call, as Fisher's and CallHome's."""

import numpy as np
import pytest
import soundfile
from layouts import RATE, Source, text, wav

FISHER = "# fe_03_00001.sph\n# Transcribed at the LDC\n\n0.10 0.40 A: hi there\n0.35 0.60 B: hello\n0.70 0.90 A1: yes\n"
REMARK = "speakers A and B of two-channel recordings: the left and the right channel"


def test_a_is_the_left_channel_and_b_the_right_one(tmp_path):
    (tmp_path / "audio").mkdir()
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (RATE, 2))
    soundfile.write(tmp_path / "audio" / "fe_03_00001.sph", samples, RATE, format="NIST", subtype="PCM_16")
    text(tmp_path / "trans" / "fe_03_00001.txt", FISHER)
    wav(tmp_path / "audio" / "call.wav", channels=2)
    text(tmp_path / "trans" / "call.txt", FISHER)
    source = Source(tmp_path)
    turns = [("A", 0.1, 0.4, "hi there", 0), ("B", 0.35, 0.6, "hello", 1), ("A1", 0.7, 0.9, "yes", 0)]
    assert source.said == {"audio/call.wav": turns, "audio/fe_03_00001.sph": turns}
    assert sorted(source.notes.remarks[REMARK]) == ["audio/call.wav", "audio/fe_03_00001.sph"]


@pytest.mark.parametrize(
    ("channels", "content", "options"),
    [
        (1, FISHER, {}),  # a mix of both sides
        (3, FISHER, {}),
        (2, FISHER, {"two_channel": "no"}),  # the user says that it is stereo
        (2, FISHER.replace("B:", "Bob:"), {}),
        (2, FISHER.replace("B:", "C:"), {}),
        (2, FISHER.replace("B:", "A2:"), {}),  # one side alone may be of any channel
        (2, "[00:00:00] A: hi\n[00:00:01] B: hello\n", {}),  # as people write down a talk
    ],
)
def test_other_speakers_and_recordings_have_no_sides(tmp_path, channels, content, options):
    wav(tmp_path / "x.wav", channels=channels)
    text(tmp_path / "x.txt", content)
    source = Source(tmp_path, **options)
    (recording,) = source.recordings.values()
    assert {turn.channel for turn in recording.turns} == {None} and REMARK not in source.notes.remarks


def test_audio_that_cannot_be_read_is_left_to_the_probe(tmp_path):
    text(tmp_path / "x.txt", FISHER)
    (tmp_path / "x.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    (recording,) = Source(tmp_path).recordings.values()
    assert {turn.channel for turn in recording.turns} == {None}
