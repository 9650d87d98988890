"""Measures of generated samples: their values, the warnings when they get worse, and a run that ends by them."""

from __future__ import annotations

import logging
import math

import pytest

from csm.config import EarlyStopConfig
from csm.formats.native import read_config
from csm.stability.early_stop import EarlyStop
from csm.stability.sample_metrics import EndRecall, drift, sample_metrics
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.metrics import loss_metrics
from csm.training.samples import AudioSamples
from csm.validate import validate_train_config
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.training.test_train import logged


def record(frames: int, reference: int = 30, reason: str = "stop", text: str = "ten chars.", **scores):
    return {"frames": frames, "reference_frames": reference, "finish_reason": reason, "text": text, **scores}


def test_shares_rates_and_scores():
    records = [
        record(30, word_errors=0, words=2, similarity=0.9),
        record(15, word_errors=1, words=2, similarity=0.7),  # ended too early: twice as fast
        record(85, reason="length", word_errors=5, words=2, similarity=None),  # too little speech for an embedding
        record(60, reason="silence", word_errors=0, words=2, similarity=0.5),
        record(0, word_errors=2, words=2, similarity=None),
    ]
    found = sample_metrics(records, frame_rate=12.5)
    assert found == pytest.approx(
        {
            "samples/rate": 60 / 45,
            "samples/chars_per_second": 20 / 3.6,
            "samples/ended": 0.4,
            "samples/end_accuracy": 0.2,
            "samples/runaway": 0.4,
            "samples/empty": 0.2,
            "samples/similarity": 0.7,
            "samples/wer": 0.8,
        }
    )
    none = sample_metrics([record(0), record(85, reason="length")], 12.5)
    assert math.isnan(none["samples/rate"]) and none["samples/ended"] == 0
    assert not {"samples/similarity", "samples/wer"} & none.keys()


def test_drift_of_rate_and_ends_is_named_and_a_beginning_is_not():
    good = sample_metrics([record(30), record(33)], 12.5)
    faster = sample_metrics([record(18), record(20)], 12.5)
    slower = sample_metrics([record(60), record(55)], 12.5)
    running = sample_metrics([record(30), record(85, reason="length")], 12.5)
    assert drift([], faster) == drift([], running) == []  # it may be learning yet
    assert drift([(10, running)], good) == drift([(10, good)], good) == []
    (sentence,) = drift([(10, faster), (20, good)], faster)
    assert sentence.startswith("speech has become faster: 1.58 times the rate of the recordings, 0.95 at step 20")
    (sentence,) = drift([(20, good)], slower)
    assert sentence.startswith("speech has become slower: 0.52 times")
    (sentence,) = drift([(10, running), (20, good)], running)
    assert sentence.startswith("the model ends 50% of the samples, 100% at step 20 (50% run away, 0% are empty)")


def test_ends_that_are_no_longer_predicted_are_named():
    watch = EndRecall()
    for step, recall in [(10, math.nan), (20, 0.1), (30, 0.98), (40, 0.74), (50, math.nan)]:
        assert watch.see(step, recall) is None
    assert watch.see(60, 0.73) == (
        "the model predicts 73% of the ends of speech, 98% at step 30; loss.eos_weight above 1 weighs ends more"
    )
    assert watch.see(70, 0.98) is None


@pytest.mark.slow
def test_ends_of_a_run_are_watched_beyond_a_resume(tiny_overrides, monkeypatch, caplog):
    of = iter((0.9, 0.6))

    def metrics(sums, prefix):
        return loss_metrics(sums, prefix) | ({"val/eos_recall": next(of)} if prefix == "val" else {})

    monkeypatch.setattr("csm.training.train.loss_metrics", metrics)
    words = [*tiny_overrides, "trainer.val_every_steps=2", "ckpt_path=last"]
    for steps in (2, 4):
        train(compose_train([*words, f"trainer.max_steps={steps}"]))
    (message,) = [message for message in caplog.messages if "ends of speech" in message]
    assert message.startswith("validation of step 4: the model predicts 60% of the ends of speech, 90% at step 2;")


@pytest.mark.slow
def test_samples_that_get_worse_are_named_in_the_log(tiny_overrides, monkeypatch, caplog):
    """Of real samples, what two validations measure is set: all turns ended, then half of them."""
    measured = {2: sample_metrics([record(30), record(33)], 12.5)}
    measured[4] = sample_metrics([record(30), record(85, reason="length")], 12.5)

    def metrics(records, frame_rate):
        return measured[records[0]["step"]]

    monkeypatch.setattr("csm.training.samples.sample_metrics", metrics)
    words = ["trainer.val_every_steps=2", "trainer.sample_every_steps=2", "trainer.sample_prompts=1"]
    train(compose_train([*tiny_overrides, *words, "trainer.max_steps=4"]))
    (message,) = [message for message in caplog.messages if message.startswith("samples of step")]
    assert message.startswith("samples of step 4: the model ends 50% of the samples, 100% at step 2")


def test_patience_counts_values_of_its_metric_alone():
    stop = EarlyStop(EarlyStopConfig("samples/similarity", patience=2))
    seen = [stop.see({"val/loss": 1.0, "samples/similarity": value}) for value in (0.5, 0.6, 0.6)]
    assert seen == [True, True, False] and not stop.done
    assert not stop.see({"val/loss": 0.1}) and stop.misses == 1  # no samples at this validation
    again = EarlyStop(EarlyStopConfig("samples/similarity", patience=2))
    again.load_state(stop.state())
    assert not again.see({"samples/similarity": math.nan}) and again.done
    other = EarlyStop(EarlyStopConfig("val/loss"))
    other.load_state(stop.state())  # the run follows another metric now
    assert other.see({"val/loss": 5.0}) and not other.done
    never = EarlyStop(EarlyStopConfig())
    assert [never.see({"val/loss": value}) for value in (3.0, 4.0, 4.0, 2.0)] == [True, False, False, True]
    assert not never.done
    with pytest.raises(ValueError, match="metric=val/los: validation has val/loss, and"):
        EarlyStop(EarlyStopConfig("val/los")).see({"val/loss": 1.0})


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("val/loss_c0", 0.1),
        ("val/accuracy_c0", 0.9),
        ("val_codebooks/accuracy_00", 0.9),
        ("val/eos_recall", 0.9),
        ("samples/ended", 0.9),
        ("samples/end_accuracy", 0.9),
        ("samples/similarity", 0.9),
        ("samples/wer", 0.1),
        ("samples/runaway", 0.1),
        ("samples/empty", 0.1),
    ],
)
def test_the_metric_says_whether_more_of_it_is_better(metric, best):
    stop = EarlyStop(EarlyStopConfig(metric))
    values = [0.5, 0.9, 0.1, 0.9, 0.1]
    seen = [stop.see({metric: value}) for value in values]
    assert [value for value, is_best in zip(values, seen, strict=True) if is_best] == [0.5, best]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.early_stop.metric=val/entropy_c0"], "neither its lowest nor its highest value is the best"),
        (["trainer.early_stop.metric=samples/rate"], "neither its lowest nor its highest value is the best"),
        (["trainer.early_stop.metric=samples/loss"], "choose val/loss or another val"),
        (["trainer.early_stop.metric=samples/wer"], "needs its judge: set trainer.sample_asr"),
        (["trainer.early_stop.metric=samples/ended"], "set trainer.sample_every_steps"),
        (["trainer.sample_prompts=0"], "sample_prompts=0 must be at least 1"),
        (["trainer.early_stop.metric=val/loss", "trainer.early_stop.patience=0"], "patience=0 must be at least 1"),
    ],
)
def test_samples_and_an_early_stop_that_cannot_come_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        validate_train_config(compose_train([*TINY_OVERRIDES, "data.path=x", *words]), 1, "cpu")


@pytest.mark.slow
def test_a_run_ends_by_its_samples_and_exports_the_best(tiny_overrides, tmp_path, monkeypatch, caplog):
    """Word errors and voices of real samples are logged. The similarity that decides is set: best at step 4, no better
    at 6 and 8. A run stopped in between goes on counting."""
    of = {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.9, 10: 1.0}
    speak = AudioSamples._speak

    def similar(self, model, step, loggers):
        return speak(self, model, step, loggers) | {"samples/similarity": of[step]}

    monkeypatch.setattr(AudioSamples, "_speak", similar)
    words = [
        *(*tiny_overrides, "trainer.val_every_steps=2", "trainer.sample_every_steps=2", "trainer.sample_prompts=1"),
        *("trainer.sample_asr=bundled", "trainer.sample_similarity=resemblyzer", "ckpt_path=last"),
        *("trainer.early_stop={metric: samples/similarity, patience: 2}",),
    ]
    train(compose_train([*words, "trainer.max_steps=6"]))
    with caplog.at_level(logging.INFO):
        train(compose_train([*words, "trainer.max_steps=20"]))
    samples = [line for line in logged(tmp_path / "run") if line["samples/similarity"] is not None]
    assert [line["step"] for line in samples] == [2, 4, 6, 8]
    assert all({"samples/wer", "samples/ended", "samples/rate"} <= line.keys() for line in samples)
    for line in read_lines(tmp_path / "run" / "samples" / "samples.jsonl"):
        assert line["words"] > 0 and isinstance(line["heard"], str) and line["reference_frames"] > 0
    messages = [record.message for record in caplog.records]
    assert "samples/similarity has stopped improving: the run ends; best.ckpt is of step 4" in messages
    from csm import load_model
    from csm.checkpoint.contents import read_training_checkpoint

    best = read_training_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["global_step"] == 4 and read_config(tmp_path / "run" / "export")
    for name, tensor in load_model(tmp_path / "run" / "export").state_dict().items():
        assert tensor.equal(best["state_dict"][f"model.{name}"]), name
