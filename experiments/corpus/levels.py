"""The levels of the corpus by name."""

from __future__ import annotations

from pathlib import Path

from experiments.corpus.grammar import read_grammar
from experiments.corpus.numbers import DRAWN
from experiments.corpus.plan import Level

_HERE = Path(__file__).parent

_DESK = read_grammar(_HERE / "desk.txt", DRAWN, held_out=frozenset({"seventeen", "eighty"}))

LEVELS = {
    "desk": Level("desk", _DESK, voices=("joe", "slt"), test_voices=(), small=40, hours=4.0),
    "voices": Level("voices", _DESK, voices=("joe", "slt", "awb", "kal"), test_voices=(), small=40, hours=4.0),
    "open": Level(
        "open",
        read_grammar(_HERE / "open.txt", DRAWN, held_out=frozenset()),
        voices=("joe", "slt", "rms", "heart", "bella", "michael", "fenrir", "emma", "george"),
        test_voices=("kore", "puck"),
        small=40,
        hours=10.0,
        rates=(0.92, 1.08),
    ),
}
