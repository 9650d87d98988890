"""Silence at the ends of given turns: cut off with a margin where asked for, kept otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from heard import item

from data_prep.config import TurnsConfig, VadConfig
from data_prep.records import GivenTurn, Speakers, Speech, Transcript
from data_prep.stages.turns import TurnsStage

RATE = 16_000


@pytest.mark.parametrize("background_db", [-50, -35, -28])
@pytest.mark.parametrize(("margin", "ends"), [(None, [4.0, 8.0, 12.0]), (0.3, [2.3, 8.0, 12.0])])
def test_given_turns_end_with_their_sound(tmp_path, margin, ends, background_db):
    """Speech of 2 s over a background, then 2 s of background; speech to the end; silence alone."""
    generator = np.random.default_rng(0)
    audio = 0.3 * 10 ** (background_db / 20) * generator.standard_normal(12 * RATE).astype(np.float32)
    for start, end in ((0, 2), (4, 8)):
        audio[start * RATE : end * RATE] += 0.3 * generator.standard_normal((end - start) * RATE).astype(np.float32)
    audio[8 * RATE :] = 0
    given = [GivenTurn(n, "Ann", 4.0 * n, 4.0 * n + 4, f"Line {n}.", None) for n in range(3)]
    recorded = item(tmp_path / "a.wav", audio[None], RATE, [])
    recorded.recording.turns = given
    recorded.results = {"vad": Speech([]), "diarize": Speakers([]), "transcribe": Transcript([])}
    (result,) = TurnsStage(TurnsConfig(trim_given_seconds=margin), VadConfig()).process([recorded])
    assert [turn.start for turn in result.turns] == [0.0, 4.0, 8.0]
    assert [turn.end for turn in result.turns] == pytest.approx(ends, abs=0.05)
