"""Diarizers of other packages, with stand-ins for their models; and what is said where they are missing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from heard import item

from csm.judges.hub import ModelUnavailable
from data_prep.config import DiarizeBackend, DiarizeConfig, TurnsConfig, VadConfig
from data_prep.records import Clip, Span, Speakers, SpeakerSpan, Speech, TrackSpeech, Transcript, Word
from data_prep.stages.base import Item
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.turns import TurnsStage

RATE = 16_000
SECONDS = 8.0
# One is talked over from 3 to 4 s; the last one ends after the recording, as models that pad have it.
AT_ONCE = [(1.0, 4.0, "B"), (3.0, 6.0, "A"), (7.5, 8.08, "B")]
FOUND = [
    SpeakerSpan(1.0, 4.0, "speaker0", None),
    SpeakerSpan(3.0, 6.0, "speaker1", None),
    SpeakerSpan(7.5, SECONDS, "speaker0", None),
]


@pytest.fixture
def talk(tmp_path: Path) -> Item:
    """A recording in which there is speech from 1 to 6 and from 7.5 s on."""
    made = item(tmp_path / "talk.wav", 0.1 * np.ones((1, round(SECONDS * RATE)), np.float32), RATE, [])
    made.results["vad"] = Speech([TrackSpeech(None, [Span(1.0, 6.0), Span(7.5, SECONDS)])])
    return made


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, made)


@dataclass
class FakePipeline:
    """Stands in for pyannote.audio's pipeline, and remembers what it was given."""

    asked: dict[str, Any]

    def to(self, device: Any) -> FakePipeline:
        self.asked["device"] = str(device)
        return self

    def __call__(self, audio: dict[str, Any], max_speakers: int) -> Any:
        self.asked |= {"shape": tuple(audio["waveform"].shape), "rate": audio["sample_rate"], "most": max_speakers}
        tracks = [(SimpleNamespace(start=start, end=end), "_", who) for start, end, who in AT_ONCE[::-1]]
        return SimpleNamespace(speaker_diarization=SimpleNamespace(itertracks=lambda yield_label: tracks))


@pytest.fixture
def pyannote(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def load(model: str) -> FakePipeline:
        asked["model"] = model
        return FakePipeline(asked)

    module(monkeypatch, "pyannote.audio", Pipeline=SimpleNamespace(from_pretrained=load))
    module(monkeypatch, "pyannote.audio.telemetry", set_telemetry_metrics=lambda on: asked.setdefault("telemetry", on))
    return asked


def test_pyannotes_speakers_may_speak_at_once(pyannote, talk):
    stage = DiarizeStage(DiarizeConfig(DiarizeBackend.pyannote, pyannote="some/pipeline", max_speakers=3))
    assert stage.process([talk, talk]) == [Speakers(FOUND, one_at_a_time=False)] * 2
    samples = round(SECONDS * RATE)
    assert pyannote == {
        "model": "some/pipeline", "device": "cpu", "telemetry": False, "shape": (1, samples), "rate": RATE, "most": 3,
    }  # fmt: skip


def test_overlap_that_pyannote_finds_is_known_of_the_turns(pyannote, talk):
    (talk.results["diarize"],) = DiarizeStage(DiarizeConfig(DiarizeBackend.pyannote)).process([talk])
    said = [("So", 1.0, 2.0), ("this.", 2.0, 3.4), ("No", 4.2, 5.0), ("that.", 5.0, 6.0), ("Yes.", 7.5, 7.9)]
    words = [Word(text, start, end, 0.9) for text, start, end in said]
    clip = Clip(0.0, SECONDS, None, "So this. No that. Yes.", words, "en", 1.0, -0.2, 0.1, 1.5)
    talk.results["transcribe"] = Transcript([clip])
    (turns,) = TurnsStage(TurnsConfig(), VadConfig()).process([talk])
    assert [(turn.speaker, turn.text) for turn in turns.turns] == [
        ("speaker0", "So this."),
        ("speaker1", "No that."),
        ("speaker0", "Yes."),
    ]
    first, second, last = turns.turns
    assert 3.0 < first.end <= 4.0 and first.overlap == pytest.approx(first.end - 3.0)
    assert second.start >= 4.0 and (second.overlap, last.overlap) == (0.0, 0.0)


class FakeSortformer:
    """Stands in for NeMo's model, which reads a file and writes lines."""

    def __init__(self, **loaded: Any) -> None:
        self.asked = loaded

    def to(self, device: str) -> FakeSortformer:
        self.asked["device"] = device
        return self

    def eval(self) -> FakeSortformer:
        return self

    def diarize(self, audio: list[str], batch_size: int, num_workers: int, verbose: bool) -> list[list[str]]:
        samples, rate = soundfile.read(audio[0], dtype="float32")
        self.asked |= {"samples": samples, "rate": rate}
        return [[f"{start:.2f} {end:.2f} speaker_{'BA'.index(who)}" for start, end, who in AT_ONCE[::-1]]]


@pytest.fixture
def nemo(monkeypatch: pytest.MonkeyPatch) -> list[FakeSortformer]:
    made: list[FakeSortformer] = []

    def load(model: str, **options: Any) -> FakeSortformer:
        if model == "no/such":
            raise FileNotFoundError("404 Client Error\nfor url")
        made.append(FakeSortformer(model=model, **options))
        return made[-1]

    known = SimpleNamespace(from_pretrained=load, restore_from=load)
    module(monkeypatch, "nemo.collections.asr.models", SortformerEncLabelModel=known)
    for parent in ("nemo", "nemo.collections", "nemo.collections.asr"):
        module(monkeypatch, parent)
    return made


@pytest.mark.parametrize(
    ("model", "options"), [("some/model", {}), ("/models/four.nemo", {"strict": False})], ids=["hub", "file"]
)
def test_sortformers_speakers_may_speak_at_once(nemo, talk, model, options):
    stage = DiarizeStage(DiarizeConfig(DiarizeBackend.sortformer, sortformer=model))
    assert stage.process([talk, talk]) == [Speakers(FOUND, one_at_a_time=False)] * 2
    (loaded,) = nemo  # once
    np.testing.assert_array_equal(loaded.asked.pop("samples"), np.full(round(SECONDS * RATE), 0.1, np.float32))
    assert loaded.asked == {"model": model, "map_location": "cpu", "device": "cpu", "rate": RATE} | options


def test_missing_weights_of_sortformer_are_one_line(nemo, talk):
    stage = DiarizeStage(DiarizeConfig(DiarizeBackend.sortformer, sortformer="no/such"))
    with pytest.raises(ModelUnavailable, match=r"no/such does not load .*404 Client Error\).*set diarize.sortformer"):
        stage.process([talk])


def test_a_missing_nemo_is_one_line(monkeypatch, talk):
    monkeypatch.setitem(sys.modules, "nemo", None)
    stage = DiarizeStage(DiarizeConfig(DiarizeBackend.sortformer))
    with pytest.raises(ModelUnavailable, match=r"^NeMo cannot be imported.*nemo_toolkit\[asr\].*diarize.backend=clus"):
        stage.process([talk])


def test_a_missing_pyannote_is_one_line(tmp_path, talk):
    stage = DiarizeStage(DiarizeConfig(DiarizeBackend.pyannote, pyannote=str(tmp_path)))
    with pytest.raises(ModelUnavailable, match=r"pyannote.audio cannot be imported.*diarize.backend=cluster"):
        stage.process([talk])


def test_without_pyannotes_weights_auto_clusters(tmp_path):
    # decided before any work, so that it is part of the fingerprint of results
    assert DiarizeStage(DiarizeConfig(pyannote=str(tmp_path))).options.backend is DiarizeBackend.cluster


def test_one_speaker_says_all_speech(talk):
    (found,) = DiarizeStage(DiarizeConfig(DiarizeBackend.single)).process([talk])
    assert found == Speakers(
        [SpeakerSpan(1.0, 6.0, "speaker0", None), SpeakerSpan(7.5, SECONDS, "speaker0", None)], one_at_a_time=True
    )
