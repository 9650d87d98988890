"""Trainings of the layouts delay and flat: they learn, resume, are saved and scored; what needs a depth decoder is
refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from csm import load_generator, load_model
from csm.arrangement import arranged
from csm.checkpoint.contents import read_training_checkpoint
from csm.config import CodeLayout, EvaluateConfig, PlanConfig
from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.data.rows import sample_turns
from csm.evaluation.run import evaluate
from csm.formats.export import export
from csm.formats.native import read_config
from csm.formats.open import open_checkpoint
from csm.formats.quantized import load_quantized
from csm.frames import conversation_frames
from csm.model.single_stack import SingleStack
from csm.planning.estimate import make_plan
from csm.quantization.schemes import Quantization
from csm.text import ByteTokenizer
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.validate import validate_train_config
from experiments.arms.experiment import View
from experiments.arms.scores import score
from tests.conftest import TINY_OVERRIDES, compose_train

LAYOUTS = ["delay", "flat"]
STEPS = 8
LENGTH = 900  # of a row: every conversation fits in every layout
OPTIONS = [
    *TINY_OVERRIDES,
    f"data.max_seq_len={LENGTH}",
    "data.num_workers=0",
    "data.global_batch_size=2",
    "data.micro_batch_size=1",
    *(f"data.{name}=0.2" for name in ("code_noise", "frame_dropout", "codebook_dropout", "text_dropout")),
    "loss.decoder_chunk=37",
    "optim.lr=3e-3",
    "optim.warmup_steps=1",
    "optim.schedule=wsd",  # constant: does not depend on max_steps
    f"trainer.max_steps={STEPS}",
    "trainer.val_every_steps=4",
    "ckpt_path=last",
]


def options(layout: str, dataset: Path, run_dir: Path) -> list[str]:
    return [*OPTIONS, f"model.layout={layout}", f"data.path={dataset}", f"run_dir={run_dir}"]


@pytest.fixture(scope="module", params=LAYOUTS)
def trained(request, small_dataset, tmp_path_factory) -> tuple[str, Path]:
    """A layout and the folder of its training."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(compose_train(options(request.param, small_dataset, folder)))
    return request.param, folder


def test_it_learns_and_a_resumed_run_ends_with_the_same_weights(trained, small_dataset, tmp_path, caplog):
    layout, folder = trained
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "val/loss" in line]
    losses = [line["val/loss"] for line in lines]
    assert len(losses) == 2 and losses[1] < losses[0] < 2 * np.log(26)
    assert all(line["val/leak"] == 0 and line["val/shift_gain"] < 0.1 for line in lines)
    overrides = options(layout, small_dataset, tmp_path / "run")
    train(compose_train([*overrides, f"trainer.max_steps={STEPS // 2}"]))
    with caplog.at_level("WARNING"):
        train(compose_train(overrides))
    assert "labels of the first batch" not in caplog.text  # of shifts and futures as well, since it has learned
    whole, resumed = (read_training_checkpoint(run / "checkpoints/last.ckpt") for run in (folder, tmp_path / "run"))
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name

    with pytest.raises(ValueError, match=f"model.layout: {layout} -> depth"):
        train(compose_train([*overrides, "model.layout=depth"]))


def test_the_saved_model_scores_as_validation_did(trained, small_dataset):
    layout, folder = trained
    checkpoint, dataset = open_checkpoint(folder / "export"), ShardedDataset(small_dataset)
    assert read_config(folder / "export")["model"]["layout"] == layout
    model = checkpoint.load_to_score()
    assert isinstance(model, SingleStack)
    for name, tensor in read_training_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"].items():
        assert torch.equal(model.state_dict()[name.removeprefix("model.")], tensor)

    found = score(model, dataset, checkpoint.read_tokenizer(), LENGTH, View.whole)
    last = [line for line in read_lines(folder / "metrics.jsonl") if "val/loss" in line][-1]
    frames = sum(item.frames for item in found.values())
    for group, metric in (("c0", "val/loss_c0"), ("others", "val/loss_decoder"), ("c1-7", "val/loss_c1_4")):
        nats = sum(item.nats[group] for item in found.values())
        assert nats / frames == pytest.approx(last[metric], rel=1e-4)
    again = score(
        open_checkpoint(folder / "checkpoints/last.ckpt").load_to_score(),
        dataset,
        checkpoint.read_tokenizer(),
        LENGTH,
        View.whole,
    )
    assert again == found
    # As many turns and the same codes as any arm: the checksums are those of CSM's own layout.
    plain = [sample_turns(dataset.read(int(index)), ByteTokenizer(), LENGTH) for index in dataset.select("val")]
    assert sorted(item.frames for item in found.values()) == sorted(
        int(conversation_frames(turns, 5).targets.sum()) for turns in plain
    )


@pytest.mark.parametrize("layout", list(CodeLayout))
def test_lengths_count_the_positions_of_the_layout(layout, small_dataset, tmp_path):
    dataset, tokenizer = ShardedDataset(small_dataset), ByteTokenizer()
    lengths = load_lengths(dataset, tokenizer, tmp_path, layout)
    for index in range(len(dataset)):
        turns = sample_turns(dataset.read(index), tokenizer, 10**6, layout=layout)
        assert lengths[0, index] == len(arranged(conversation_frames(turns, 5), layout))
        assert lengths[1, index] == len(arranged(conversation_frames(turns[:1], 5), layout))
        limit = int(lengths[0, index]) - 1
        assert len(sample_turns(dataset.read(index), tokenizer, limit, layout=layout)) == len(turns) - 1


def one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_what_needs_a_depth_decoder_is_refused_in_one_line(trained, tmp_path):
    layout, folder = trained
    model, named = folder / "export", f"model.layout={layout}"
    for speaks in (
        lambda: load_model(model),
        lambda: load_generator(model),
        lambda: evaluate(EvaluateConfig(checkpoint=str(model), output=str(tmp_path / "evaluated"))),
    ):
        with pytest.raises(ValueError) as error:
            speaks()
        one_line(error, named, "speech needs a model of model.layout=depth", "experiments.arms")
    with pytest.raises(ValueError) as error:
        load_quantized(open_checkpoint(model), Quantization("int8"))
    one_line(error, named, "quantization needs")
    for name in ("hf", "sesame", "all", "peft"):
        with pytest.raises(ValueError) as error:
            export(open_checkpoint(model), tmp_path / name, name)
        one_line(error, named, f"the format {name!r} needs")
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.sample_every_steps=3"], "trainer.sample_every_steps=0"),
        (["lora.rank=2"], "lora.rank=2"),
        (["strategy=deepspeed_zero2"], "choose strategy=fsdp"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_trainings_that_cannot_be_are_refused_before_they_begin(layout, words, message, tmp_path):
    config = compose_train([*options(layout, tmp_path, tmp_path / "run"), *words])
    with pytest.raises(ValueError) as error:
        validate_train_config(config, 1, "cuda")
    one_line(error, f"model.layout={layout}", message)


def test_there_is_no_plan_without_a_depth_decoder(tmp_path):
    with pytest.raises(ValueError) as error:
        make_plan(compose_train(options("flat", tmp_path, tmp_path)), PlanConfig())
    one_line(error, "model.layout=flat has no plan")
