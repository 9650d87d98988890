"""The lines of metrics.jsonl against the same steps done by hand; resume in the middle of an interval."""

from __future__ import annotations

import math
import time

import pytest
import torch
from lightning.fabric.loggers import Logger

from csm.data.packing import StepBatch
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.metrics import IntervalSums
from csm.training.optim import lr_factor
from tests.conftest import compose_train
from tests.tiny import conversation, forward, rows, tiny_model
from tests.training.forked import finished
from tests.training.recorded import by_hand, interval_sums, recorded

STEPS = ["trainer.max_steps=4", "trainer.log_every_steps=2", "trainer.val_every_steps=3", "optim.warmup_steps=3"]

TENSOR_PARALLEL = [
    "strategy.tensor_parallel_size=2",
    "model.backbone={layers: 2, dim: 48, heads: 6, kv_heads: 2, ffn_dim: 72}",
]


def filled(batches: list[StepBatch]) -> int:
    return sum(int((part.documents >= 0).sum()) for batch in batches for part in batch.microbatches)


def test_lines_equal_the_steps_done_by_hand(tiny_overrides, tmp_path):
    """Two intervals of two steps of two microbatches, with a validation inside the second."""
    config = compose_train([*tiny_overrides, *STEPS, "optim.decoder_lr_scale=2.0"])
    with recorded() as recording:
        train(config)
    steps = by_hand(config, recording)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [(line["step"], "train/loss" in line) for line in lines] == [(2, True), (3, False), (4, True)]
    for line, numbers in ((lines[0], (1, 2)), (lines[2], (3, 4))):
        sums = interval_sums([steps[number] for number in numbers])
        losses, right = sums.losses / sums.frames, sums.correct / sums.frames
        decoder = losses[1:].mean().item()
        for codebook in range(5):
            assert line[f"train_codebooks/loss_{codebook:02d}"] == pytest.approx(losses[codebook].item(), rel=1e-5)
            assert line[f"train_codebooks/accuracy_{codebook:02d}"] == pytest.approx(right[codebook].item(), rel=1e-5)
        assert line["train/loss_c0"] == line["train_codebooks/loss_00"]
        assert line["train/perplexity_c0"] == pytest.approx(math.exp(losses[0]), rel=1e-5)
        assert line["train/loss_c1_4"] == line["train/loss_decoder"] == pytest.approx(decoder, rel=1e-5)
        assert line["train/loss"] == pytest.approx(losses[0].item() + decoder, rel=1e-5)
        assert line["train/accuracy_top5_c0"] == pytest.approx((sums.top5 / sums.frames).item())
        assert line["train/entropy_c0"] == pytest.approx((sums.entropy / sums.frames).item(), rel=1e-5)
        assert line["train/eos_recall"] == pytest.approx((sums.eos[1] / sums.eos[0]).item())
        for part, name in (("", ""), ("backbone", "_backbone"), ("decoder", "_decoder"), ("embeddings", "_embeddings")):
            expected = sum(steps[number].norms[part] for number in numbers) / 2
            assert line[f"train/gradient_norm{name}"] == pytest.approx(expected, rel=1e-4)
        factor = lr_factor(numbers[1] - 1, config.optim, 4)
        assert line["train/lr_backbone"] == pytest.approx(config.optim.lr * factor)
        assert line["train/lr_decoder_no_decay"] == pytest.approx(2 * config.optim.lr * factor)

        batches = recording.batches[numbers[0] - 1 : numbers[1]]
        positions = 2 * 4 * 384  # steps, rows, positions
        assert line["throughput/padding_share"] == pytest.approx(1 - filled(batches) / positions)
        assert 0 < line["throughput/padding_share"] < 1
        rate = line["throughput/frames_per_second"]
        frames = sum(batch.frames for batch in batches)
        assert rate / line["throughput/positions_per_second"] == pytest.approx(frames / positions)
        assert line["throughput/audio_hours_per_hour"] == pytest.approx(rate / 12.5)
        assert 0 < line["throughput/data_wait_share"] < 1 and 0.05 < line["memory/resident_gib"] < 64
        assert line["train/skipped_steps"] == 0 and "throughput/mfu" not in line  # no peak is known for a CPU


@pytest.mark.slow
def test_interval_goes_on_where_a_checkpoint_cut_it(tiny_overrides, tmp_path):
    steady = ["optim.schedule=wsd", "trainer.log_every_steps=2", "ckpt_path=last"]
    whole = [*tiny_overrides, *steady, "trainer.max_steps=4", f"run_dir={tmp_path / 'whole'}"]
    train(compose_train(whole))
    for steps in (3, 4):
        train(compose_train([*tiny_overrides, *steady, f"trainer.max_steps={steps}"]))
    lines = [[x for x in read_lines(tmp_path / r / "metrics.jsonl") if "train/loss" in x] for r in ("run", "whole")]
    assert [line["step"] for line in lines[0]] == [2, 4]
    for first, second in zip(*lines, strict=True):
        for name in (
            "train/loss",
            "train_codebooks/loss_04",
            "train/gradient_norm_decoder",
            "throughput/padding_share",
        ):
            assert first[name] == second[name], name


@pytest.mark.slow
def test_interval_goes_on_with_ranks_that_read_the_same_rows(tiny_overrides, tmp_path):
    """Tensor parallelism: the steps before the checkpoint count once, as those after it."""
    words = [*tiny_overrides, *TENSOR_PARALLEL, "optim.schedule=wsd", "trainer.log_every_steps=4", "ckpt_path=last"]
    finished([*words, "trainer.max_steps=4", f"run_dir={tmp_path / 'whole'}"], tmp_path / "whole.log", 2, "fsdp")
    for steps in (3, 4):
        finished([*words, f"trainer.max_steps={steps}"], tmp_path / f"{steps}.log", 2, "fsdp")
    (first,), (second,) = (
        [line for line in read_lines(tmp_path / run / "metrics.jsonl") if "train/loss" in line]
        for run in ("run", "whole")
    )
    assert first["step"] == second["step"] == 4
    same = [name for name in second if name.startswith("train") or name == "throughput/padding_share"]
    assert {name: first[name] for name in same} == {name: second[name] for name in same}


class SlowLogger(Logger):
    """Takes far longer than a step, as waiting for a GPU to finish its step does."""

    name, version = "slow", 0

    def log_metrics(self, metrics, step=None):
        time.sleep(0.5)

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@pytest.mark.slow
def test_only_waiting_for_the_next_batch_is_waiting_for_data(tiny_overrides, tmp_path):
    options = ["+logger.slow._target_=tests.training.test_metrics.SlowLogger", "data.num_workers=1"]
    train(compose_train([*tiny_overrides, *options, "trainer.val_every_steps=0"]))
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert [line["throughput/data_wait_share"] < 0.3 for line in lines[1:]] == [True, True]


def test_work_of_packed_rows():
    """Lengths of documents come from their positions."""
    documents = [[conversation(1), conversation(2, (5,))], [conversation(3, (4, 3, 2))]]
    batch = rows(documents, max_seq_len=64, ratio=4)
    lengths = [len(document) for row in documents for document in row]
    interval = IntervalSums()
    interval.add_microbatch(forward(tiny_model(), batch), batch)
    interval.end_step({"total": torch.tensor(2.0)}, torch.tensor(0.0))
    read = interval.read()
    assert read.rows_positions == 2 * 64 and read.work.positions == sum(lengths)
    assert read.work.squared_lengths == sum(length**2 for length in lengths)
    assert read.work.c0_positions == int(batch.targets.sum())
    assert read.work.frames == int((batch.slot_weights > 0).sum())
    assert read.norms == {"total": 2.0}
