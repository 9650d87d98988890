"""Stage `diarize`, and all stages from audio to turns on a real telephone call without its annotation."""

from importlib.metadata import files
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
from heard import demo_recordings, demo_turns, item, recording

from csm.evaluation.text_norm import load_normalizer
from data_prep.audio.recording import RecordingAudio
from data_prep.config import DiarizeBackend, DiarizeConfig, TranscribeConfig, TurnsConfig, VadConfig
from data_prep.records import GivenTurn, Locator, Recording, Span, Speakers, SpeakerSpan, Speech, TrackSpeech
from data_prep.stages.base import Item
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.transcribe import TranscribeStage
from data_prep.stages.turns import TurnsStage
from data_prep.stages.vad import VadStage

RATE = 16_000
Segment = tuple[float, float, str]


@pytest.fixture(scope="module")
def cluster() -> DiarizeStage:
    return DiarizeStage(DiarizeConfig(backend=DiarizeBackend.cluster))


@pytest.fixture(scope="module")
def call() -> tuple[Recording, list[Segment], list[Segment]]:
    """The call in pyannote.audio's package: the recording, (start, end, speaker) and (start, end, speaker: text)."""
    lying = {file.name: Path(file.locate()) for file in files("pyannote.audio") if "sample/" in str(file)}
    seconds = soundfile.info(lying["sample.wav"]).duration
    rttm = [line.split() for line in lying["sample.rttm"].read_text().splitlines()]
    stm = [line.split(maxsplit=5) for line in lying["sample.stm"].read_text().splitlines()]
    return (
        recording(seconds, locator=Locator(str(lying["sample.wav"]))),
        [(float(row[3]), float(row[3]) + float(row[4]), row[7]) for row in rttm],
        [(float(row[3]), float(row[4]), f"{row[2]}: {row[5]}") for row in stm],
    )


def run_all(of_call: Item, cluster: DiarizeStage) -> Item:
    for stage in (
        VadStage(VadConfig()),
        cluster,
        TranscribeStage(TranscribeConfig(model="bundled")),
        TurnsStage(TurnsConfig(), VadConfig()),
    ):
        (of_call.results[stage.name],) = stage.process([of_call])
    return of_call


def error_rate(reference: list[Segment], spans: list[SpeakerSpan], seconds: float) -> float:
    """Diarization error rate of two speakers, no collar: both ways of matching them are tried."""
    times = np.arange(0.005, seconds, 0.01)

    def active(segments: list[Segment]) -> np.ndarray:
        names = sorted({name for _, _, name in segments})
        return np.stack(
            [np.any([(s <= times) & (times < e) for s, e, n in segments if n == name], axis=0) for name in names]
        )

    truth, found = active(reference), active([(span.start, span.end, span.speaker) for span in spans])
    correct = max((truth & found).sum(), (truth & found[::-1]).sum())
    return (np.maximum(truth.sum(axis=0), found.sum(axis=0)).sum() - correct) / truth.sum()


def test_a_telephone_call_without_annotation(call, cluster):
    rec, rttm, stm = call
    results = run_all(Item(rec, RecordingAudio(rec), {}), cluster).results
    speakers = results["diarize"].spans
    assert sorted({span.speaker for span in speakers}) == ["speaker0", "speaker1"]
    assert error_rate(rttm, speakers, rec.seconds) <= 0.35  # 0.18
    turns = results["turns"].turns
    normalize = load_normalizer("en")
    reference = normalize(" ".join(text.split(": ", 1)[1] for _, _, text in stm))
    assert jiwer.wer(reference, normalize(" ".join(turn.text for turn in turns))) <= 0.35  # 0.15
    assert len({turn.speaker for turn in turns}) == 2 and all(turn.rejection is None for turn in turns)


def test_the_call_with_its_annotation_comes_out_as_annotated(call, cluster):
    rec, _, stm = call
    given = [
        GivenTurn(n, text.split(": ")[0], start, end, text.split(": ", 1)[1])
        for n, (start, end, text) in enumerate(stm)
    ]
    annotated = recording(rec.seconds, locator=rec.locator, turns=given)
    turns = run_all(Item(annotated, RecordingAudio(annotated), {}), cluster).results["turns"].turns
    found = [(turn.start, turn.end, turn.speaker, turn.text, turn.channel, turn.rejection) for turn in turns]
    assert found == [(turn.start, turn.end, turn.speaker, turn.text, None, None) for turn in given]


def test_the_call_with_its_speakers_given_is_transcribed_turn_by_turn(call, cluster):
    rec, rttm, _ = call
    rttm = rttm[4:8]
    given = [GivenTurn(n, who, start, end) for n, (start, end, who) in enumerate(rttm)]
    annotated = recording(rec.seconds, locator=rec.locator, turns=given)
    turns = run_all(Item(annotated, RecordingAudio(annotated), {}), cluster).results["turns"].turns
    assert [(turn.start, turn.end, turn.speaker) for turn in turns] == rttm
    assert "Diane" in turns[0].text and "Sheila" in turns[1].text and "also" in turns[2].text
    assert turns[3].overlap == pytest.approx(0.44)  # all of it, inside the turn before


def test_channels_are_speakers(cluster):
    of_call = Item(recording(9.0, channels=2), None, {})
    of_call.results["vad"] = Speech([TrackSpeech(0, [Span(1, 2), Span(5, 6)]), TrackSpeech(1, [Span(1.5, 4)])])
    assert cluster.process([of_call]) == [
        Speakers(
            [
                SpeakerSpan(1, 2, "channel0", 0),
                SpeakerSpan(1.5, 4, "channel1", 1),
                SpeakerSpan(5, 6, "channel0", 0),
            ]
        )
    ]


def voices(tmp_path: Path) -> list[Item]:
    """Half a minute of one voice, a telephone system's; and of two, with the caller's between."""
    both = list(demo_recordings().values())
    system = [audio for name, audio in demo_turns(2.5).items() if name.endswith((" 1", " 3"))]
    made = []
    for name, pieces in (("one", system), ("both", both)):
        of_voices = item(tmp_path / f"{name}.wav", np.concatenate(pieces)[None, : 30 * RATE], RATE, [])
        (of_voices.results["vad"],) = VadStage(VadConfig()).process([of_voices])
        made.append(of_voices)
    return made


@pytest.mark.slow
def test_voices_are_counted_whatever_they_are_grouped_with(cluster, tmp_path):
    items = voices(tmp_path)
    one, both = cluster.process(items)
    assert {span.speaker for span in one.spans} == {"speaker0"}
    assert {span.speaker for span in both.spans} == {"speaker0", "speaker1"}
    assert [cluster.process([alone])[0] for alone in items[::-1]] == [both, one]
    # all speech has a speaker, and one only
    spans = items[1].results["vad"].tracks[0].spans
    assert sum(s.end - s.start for s in both.spans) == pytest.approx(sum(s.end - s.start for s in spans))
    assert all(a.end <= b.start for a, b in pairwise(both.spans))


@pytest.mark.slow
def test_at_most_as_many_speakers_as_allowed(tmp_path):
    (_, both) = voices(tmp_path)
    stage = DiarizeStage(DiarizeConfig(backend=DiarizeBackend.cluster, max_speakers=1))
    assert {span.speaker for span in stage.process([both])[0].spans} == {"speaker0"}
