"""Chat-template message lists as segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm.audio import save_wav
from csm.inference.messages import segments_from_messages


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_paths_and_samples(tmp_path):
    wave = torch.sin(torch.arange(1600) / 10) * 0.3
    save_wav(tmp_path / "a.wav", wave, 8_000)
    samples = np.ones(77, dtype=np.float32) / 2
    messages = [
        {"role": "3", "content": [text("One."), {"type": "audio", "path": str(tmp_path / "a.wav")}]},
        {"role": 4, "content": [text("Two."), {"type": "audio", "audio": samples}]},
        {"role": "3", "content": [text("Three.")]},
    ]
    first, second, third = segments_from_messages(messages, 24_000)
    assert (first.speaker, first.text, first.audio.shape) == (3, "One.", (4800,))
    assert second.speaker == 4 and torch.equal(second.audio, torch.full((77,), 0.5))
    assert (third.speaker, third.text, third.audio) == (3, "Three.", None)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"role": "user", "content": [text("a")]}, "message 1: its role is 'user'"),
        ({"role": "0", "content": "a"}, "message 1: its content must be a list"),
        ({"role": "0", "content": [{"type": "audio", "audio": [0.0]}]}, r"message 1: its content is \['audio'\]"),
        (
            {"role": "0", "content": [text("a"), {"type": "audio"}]},
            'message 1: its audio has neither "path" nor "audio"',
        ),
        (
            {"role": "0", "content": [text("a"), {"type": "audio", "audio": [[0.0]]}]},
            "message 1: its audio must be mono",
        ),
        ("a", "message 1 is a str"),
        ({"role": "²", "content": [text("a")]}, "message 1: its role is '²'"),
        ({"role": "0", "content": ["a"]}, r"message 1: its content is \['str'\]"),
        ({"role": "0", "content": [{"type": "text"}]}, "message 1: its text is None"),
        ({"role": "0", "content": [text("a"), {"type": "audio", "audio": []}]}, "message 1: its audio must be mono"),
        (
            {"role": "0", "content": [text("a"), {"type": "audio", "audio": np.ones(5, dtype=np.int16)}]},
            r"message 1: its samples are torch\.int16",
        ),
        (
            {"role": "0", "content": [text("a"), {"type": "audio", "audio": {"array": [0.0]}}]},
            "message 1: its audio is neither a path nor an array",
        ),
        (
            {"role": "0", "content": [text("a"), {"type": "audio", "path": "missing.wav"}]},
            r"message 1: missing\.wav: no such audio file",
        ),
    ],
)
def test_what_is_wrong_is_named(bad, reason):
    good = {"role": "0", "content": [text("a"), {"type": "audio", "audio": [0.0]}]}
    with pytest.raises(ValueError, match=reason):
        segments_from_messages([good, bad], 24_000)
    with pytest.raises(ValueError, match=r"message 0: its content is \['text'\]"):
        segments_from_messages([{"role": "0", "content": [text("a")]}, good], 24_000)
