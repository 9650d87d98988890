"""Audio samples during validation: what is written, and that training does not notice."""

from __future__ import annotations

import pytest
import soundfile
import torch

from csm.data.dataset import ShardedDataset
from csm.training.build import train
from csm.training.loggers import read_lines
from tests.conftest import compose_train
from tests.training.recorded import recorded

STEPS = ["trainer.max_steps=5", "trainer.val_every_steps=2", "trainer.ema_decay=0.5", "trainer.validate_ema=true"]


@pytest.mark.slow
def test_samples_have_references_and_an_index_and_leave_training_alone(tiny_overrides, tmp_path):
    samples = ["trainer.sample_every_steps=3", "trainer.sample_prompts=2"]
    with recorded() as speaking:
        train(compose_train([*tiny_overrides, *STEPS, *samples]))
    config = compose_train([*tiny_overrides, *STEPS, f"run_dir={tmp_path / 'silent'}"])
    with recorded() as silent:
        train(config)
    for first, second in zip(speaking.random_states, silent.random_states, strict=True):
        assert torch.equal(first, second)
    assert all(torch.equal(tensor, silent.weights[-1][name]) for name, tensor in speaking.weights[-1].items())

    folder, dataset = tmp_path / "run" / "samples", ShardedDataset(config.data.path)
    index = read_lines(folder / "samples.jsonl")
    assert [line["step"] for line in index] == [4, 4]  # the first validation at or after step 3
    for line, number in zip(index, dataset.select("val")[:2], strict=True):
        sample = dataset.read(int(number))
        turn = sample.turns[-1]
        assert line["id"] == f"{sample.key}-{len(sample.turns) - 1}" and line["text"] == turn.text
        assert (
            line["finish_reason"] in ("stop", "length", "repetition", "silence")
            and line["frames"] <= 2 * turn.num_frames + 25
        )
        durations = {name: soundfile.info(folder / file).duration for name, file in line["files"].items()}
        assert abs(durations["reference"] - (turn.end - turn.start)) < 0.01
        assert abs(durations["codec"] - turn.num_frames * 0.08) < 0.01
        if line["frames"]:
            assert line["files"]["generated"] == f"{line['id']}/step-0000004.wav"
            assert abs(durations["generated"] - line["frames"] * 0.08) < 0.01
