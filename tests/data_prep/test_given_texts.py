"""Given texts against what a recognizer hears, and voices of turns: stage, limits, dataset, report. Real speech."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from heard import DEMO, demo_recordings, demo_turns, draft, item

from csm.data.dataset import ShardedDataset
from data_prep.config import ScoreConfig, TranscribeBackend, TranscribeConfig
from data_prep.prepare import prepare
from data_prep.stages.base import Item
from data_prep.stages.given_texts import GivenTexts
from data_prep.stages.score import ScoreStage

RATE = 16_000


def of_demo(name: str) -> list[dict]:
    rows = map(json.loads, (DEMO / "manifest.jsonl").read_text().splitlines())
    return next(row["turns"] for row in rows if row["id"] == name)


@pytest.fixture(scope="module")
def texts() -> GivenTexts:
    return GivenTexts(TranscribeConfig(model="bundled", beam_size=1))


@pytest.fixture(scope="module")
def message(tmp_path_factory) -> Item:
    return item(tmp_path_factory.mktemp("heard") / "a.wav", demo_recordings()["leave-message"][None], RATE, [])


def test_texts_of_the_sound_agree_and_those_of_other_turns_do_not(texts, message):
    turns = of_demo("leave-message")
    right = [draft(n, turn["start"], turn["end"], turn["text"], lang="en") for n, turn in enumerate(turns)]
    shifted = [draft(n, turn["start"], turn["end"], turns[n - 1]["text"], lang="en") for n, turn in enumerate(turns)]
    found = texts.compare(message.audio, right)
    assert sorted(found) == [0, 1, 2, 3] and all(cer <= 0.2 for _, cer in found.values())
    assert "mailbox number" in found[1][0]
    assert all(cer > 0.5 for _, cer in texts.compare(message.audio, shifted).values())


def test_times_that_are_shifted_are_seen(texts, message):
    """All times two seconds late: of a few turns little changes, of the recording everything."""
    late = [
        draft(n, t["start"] + 2, t["end"] + 2, t["text"], lang="en") for n, t in enumerate(of_demo("leave-message"))
    ]
    rates = [cer for _, cer in texts.compare(message.audio, late).values()]
    assert np.median(rates) > 0.5


def test_markup_and_spelling_of_numbers_are_no_disagreement(texts, message):
    turn = of_demo("leave-message")[1]
    text = f"<breath> {turn['text'].upper()} [noise]"
    ((_, cer),) = texts.compare(message.audio, [draft(0, turn["start"], turn["end"], text, lang="en")]).values()
    assert cer == 0.0


def test_turns_of_which_nothing_can_be_told_are_left_out(texts, message):
    turns = [
        draft(0, 0.0, 1.24, "Mhm.", lang="en"),
        draft(1, 0.0, 1.24, "Kann ich eine Nachricht hinterlassen?", lang="de"),  # which the model does not know
        draft(2, 0.0, 1.24, "Can I leave a message?"),  # in an unknown language
        draft(3, 0.0, 1.24, "Recognized, and wrong.", lang="en", avg_logprob=-0.1),
    ]
    assert texts.compare(message.audio, turns) == {}


def test_a_turn_longer_than_the_window_is_heard_to_its_end(texts, tmp_path):
    names = ["leave-message", "directory", "join", "attending"]
    said = " ".join(turn["text"] for name in names for turn in of_demo(name))
    recordings = demo_recordings()
    sound = np.concatenate([part for name in names for part in (recordings[name], np.zeros(RATE // 2, np.float32))])
    assert len(sound) > 30 * RATE
    made = item(tmp_path / "long.wav", sound[None], RATE, [])
    ((heard, cer),) = texts.compare(made.audio, [draft(0, 0.0, len(sound) / RATE, said, lang="en")]).values()
    assert cer < 0.2 and len(heard) > 0.8 * len(said)


def by_voice(speaker: int) -> list[np.ndarray]:
    """Stretches of 3 s of one of the demo's two voices."""
    rows = map(json.loads, (DEMO / "manifest.jsonl").read_text().splitlines())
    voice_of = {f"{row['id']} {n}": turn["speaker"] for row in rows for n, turn in enumerate(row["turns"])}
    speech = np.concatenate([audio for name, audio in demo_turns(0.5).items() if voice_of[name] == speaker])
    return [speech[at : at + 3 * RATE] for at in range(0, len(speech) - 3 * RATE, 3 * RATE)]


def test_voices_of_halves_and_of_a_speakers_turns(tmp_path):
    """Turns of two voices; one is under the other's name, and one begins with one voice and ends with the other."""
    first, second = (by_voice(who) for who in (0, 1))
    parts = [*((audio, "first") for audio in first[:4]), *((audio, "second") for audio in second[:3])]
    parts += [(second[3], "first"), (np.concatenate([first[4], second[4]]), "second")]
    drafts, at = [], 0.0
    for number, (audio, speaker) in enumerate(parts):
        drafts.append(draft(number, at, at + len(audio) / RATE, speaker=speaker))
        at += len(audio) / RATE
    made = item(tmp_path / "voices.wav", np.concatenate([audio for audio, _ in parts])[None], RATE, drafts)
    (scores,) = ScoreStage(ScoreConfig(voices=True, fingerprint=False)).process([made])
    similar = [score.speaker_similarity for score in scores.turns]
    assert min(similar[:4]) > similar[7] + 0.1
    halves = [score.half_similarity for score in scores.turns if score.half_similarity is not None]
    assert scores.turns[8].half_similarity == min(halves) and all(
        score.half_similarity is None
        for score, turn in zip(scores.turns, drafts, strict=True)
        if turn.end - turn.start < 4
    )


@pytest.mark.slow
def test_a_wrong_text_is_rejected_and_named_in_the_report(make_config, tmp_path):
    rows = list(map(json.loads, (DEMO / "manifest.jsonl").read_text().splitlines()))[:3]
    for row in rows:
        row["audio"] = str(DEMO / row["audio"])
    rows[0]["turns"][1]["text"] = "Zebras never said <this> in front of any microphone."
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"score.cer_model": "bundled", "score.voices": True, "strict.max_cer": 0.5}
    cfg = make_config(tmp_path / "m.jsonl", tmp_path / "out", **options)
    cfg.transcribe.backend = TranscribeBackend.none
    prepare(cfg)
    folder = tmp_path / "out"
    compared = pq.read_table(folder / "texts.parquet").to_pylist()
    given = [turn for row in rows for turn in row["turns"] if len(turn["text"]) > 12]
    assert len(given) - 2 <= len(compared) <= sum(len(row["turns"]) for row in rows)
    (wrong,) = (row for row in compared if row["text"].startswith("Zebras"))
    assert wrong["cer"] > 0.5 and "mailbox" in wrong["heard"] and not wrong["kept"]
    rejected = pq.read_table(folder / "rejects.parquet").to_pylist()
    (mismatch,) = (row for row in rejected if row["reason"] == "text_mismatch")
    assert mismatch["turn"] == 1 and mismatch["start"] == wrong["start"] and "mailbox" in mismatch["message"]
    report = json.loads((folder / "report.json").read_text())
    assert report["texts"]["compared"] == len(compared) and report["texts"]["disagreeing_kept"] == 0
    assert report["texts"]["worst"][0] == wrong and report["distributions"]["cer"]["count"] == len(compared)
    (rule,) = (check for check in report["checks"] if "disagree" in check["rule"])
    assert rule["broken"]
    assert "Zebras never said &lt;this&gt;" in (folder / "report.html").read_text()
    qualities = [turn["quality"] for turn in ShardedDataset(folder).read_record(0)["turns"]]
    assert any("cer" in quality for quality in qualities)


def test_reports_say_that_nothing_was_compared(small_dataset):
    rules = {check["rule"]: check for check in json.loads((small_dataset / "report.json").read_text())["checks"]}
    (texts,) = (check for rule, check in rules.items() if "disagree with the sound" in rule)
    (voices,) = (check for rule, check in rules.items() if "unlike their speaker" in rule)
    assert (texts["broken"], voices["broken"]) == (None, None)
    assert "score.cer_model" in texts["found"] and "score.voices" in voices["found"]
    assert not (small_dataset / "texts.parquet").exists()
