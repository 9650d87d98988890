"""Contexts as JSON Lines."""

from __future__ import annotations

import json

import pytest
import torch

from csm.audio import save_wav
from csm.inference.records import read_context


@pytest.fixture(autouse=True)
def recording(tmp_path):
    save_wav(tmp_path / "a.wav", torch.full((2400,), 0.25), 24_000)


def test_lines_end_at_line_feeds_and_marks_of_windows_are_accepted(tmp_path):
    """U+2028 and U+0085 are legal in a JSON string; a byte order mark and empty last lines are what editors leave."""
    texts = ["One\u2028two.", "Three\u0085four.", "Five."]
    lines = [json.dumps({"speaker": 1, "text": text, "audio": "a.wav"}, ensure_ascii=False) for text in texts]
    (tmp_path / "context.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    segments = read_context(tmp_path / "context.jsonl", 12_000)
    assert [(segment.speaker, segment.text) for segment in segments] == [(1, text) for text in texts]
    assert all(segment.audio is not None and segment.audio.shape == (1200,) for segment in segments)


GOOD = '{"speaker": "0", "text": "Hi.", "audio": "a.wav", "note": "other fields may be there"}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "context.jsonl:2: not JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"speaker": 1}', "line 2: lacks audio, text"),
        ('{"speaker": -1, "text": "Hi.", "audio": "a.wav"}', "line 2: speaker must be an integer from 0, got -1"),
        ('{"speaker": 0.5, "text": "Hi.", "audio": "a.wav"}', "line 2: speaker must be an integer from 0, got 0.5"),
        ('{"speaker": 0, "text": 7, "audio": "a.wav"}', "line 2: text must be a non-empty string"),
        ('{"speaker": 0, "text": "Hi.", "audio": 7}', "line 2: audio must be a path"),
        ('{"speaker": 0, "text": "Hi.", "audio": "b.wav"}', r"line 2: .*b\.wav: no such audio file"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
    (tmp_path / "context.jsonl").write_text(GOOD + line + "\n")
    with pytest.raises(ValueError, match=reason) as caught:
        read_context(tmp_path / "context.jsonl", 24_000)
    assert "\n" not in str(caught.value)


def test_other_encodings_are_named_by_line(tmp_path):
    (tmp_path / "context.jsonl").write_bytes(GOOD.encode() + '{"text": "für"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"context\.jsonl:2: not UTF-8"):
        read_context(tmp_path / "context.jsonl", 24_000)
