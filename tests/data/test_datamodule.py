"""The data module alone: batches of each rank, cursor, warnings and errors."""

from __future__ import annotations

import os
import resource
from itertools import islice

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from csm.config import CodecConfig, CodecKind, CSMConfig, DataConfig, LossConfig, SourceConfig, TrainConfig
from csm.data.datamodule import CSMDataModule
from csm.data.packing import StepBatch
from csm.data.sources import open_sources
from csm.text import ByteTokenizer
from tests.data.made_datasets import CODEC, made_dataset

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(made_dataset(tmp_path_factory.mktemp("data") / "made", 60, 12))


def data_module(folder: str, rank=0, world_size=1, max_epochs=None, pin_memory=False, **options) -> CSMDataModule:
    options = {"max_seq_len": 128, "global_batch_size": 4, "micro_batch_size": 1, "num_workers": 0} | options
    data = DataConfig(sources={"made": SourceConfig(path=folder, max_epochs=max_epochs)}, **options)
    config = TrainConfig(
        run_dir="unused",
        model=CSMConfig(
            text_vocab_size=TOKENIZER.vocab_size,
            codebook_size=CODEC.codebook_size,
            num_codebooks=CODEC.num_codebooks,
            max_seq_len=256,
        ),
        codec=CodecConfig(kind=CodecKind.spectral),
        data=data,
        loss=LossConfig(decoder_frame_ratio=8),
    )
    return CSMDataModule(config, open_sources(data), TOKENIZER, rank=rank, world_size=world_size, pin_memory=pin_memory)


def test_ranks_divide_every_step_among_them(folder):
    whole = list(islice(data_module(folder).train_dataloader(), 3))
    parts = [list(islice(data_module(folder, rank, 2).train_dataloader(), 3)) for rank in (0, 1)]
    for step, first, second in zip(whole, *parts, strict=True):
        assert step.keys == [first.keys[0], second.keys[0], first.keys[1], second.keys[1]]
        assert step.cursor == first.cursor == second.cursor


def test_a_resumed_module_reads_on_after_the_last_batch_trained_on(folder):
    module = data_module(folder, max_epochs=1)
    assert module.state_dict() == {} and not module.finished
    steps = list(module.train_dataloader())
    for step in steps[:2]:
        module.consumed(step)
    assert not module.finished
    resumed = data_module(folder, max_epochs=1)
    resumed.load_state_dict(module.state_dict())
    resumed.check_resumable(2)
    assert [step.keys for step in resumed.train_dataloader()] == [step.keys for step in steps[2:]]
    resumed.consumed(steps[-1])
    assert resumed.finished and list(resumed.train_dataloader()) == []


def test_checkpoint_without_a_cursor_cannot_be_continued(folder):
    module = data_module(folder)
    module.load_state_dict({})
    module.check_resumable(0)
    with pytest.raises(ValueError, match=r"does not say how far its data were read.*init_from=CHECKPOINT"):
        module.check_resumable(7)


def test_validation_without_a_split_has_no_batches(folder, tmp_path):
    assert len(list(data_module(folder).val_dataloader())) == len(data_module(folder).val_dataloader()) > 0
    alone = data_module(str(made_dataset(tmp_path / "made", 40)), num_workers=1)
    assert len(alone.val_dataloader()) == 0 and list(alone.val_dataloader()) == []


def test_samples_that_do_not_fit_are_named_with_the_options_that_help(folder, caplog, monkeypatch):
    module = data_module(folder, max_seq_len=40)
    module.train_dataloader()
    skipped = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert skipped
    for line in skipped:
        assert "sample made-" in line and "data.max_seq_len=40" in line
        assert "turns.max_seconds" in line and "turns.max_given_seconds" in line
    assert any("keep their leading turns only" in record.getMessage() for record in caplog.records)
    caplog.clear()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    data_module(folder, max_seq_len=40).train_dataloader()
    assert not caplog.records, "other ranks would only repeat it"


def test_data_and_options_that_do_not_fit_are_named(folder):
    with pytest.raises(ValueError, match=r"no first turn fits into data\.max_seq_len=10"):
        data_module(folder, max_seq_len=10).train_dataloader()
    with pytest.raises(ValueError, match=r"data\.global_batch_size=4 is not a multiple of .* x 3 ranks"):
        data_module(folder, world_size=3).train_dataloader()


def tensors(step: StepBatch) -> list[torch.Tensor]:
    values = [tensor for batch in step.microbatches for tensor in vars(batch).values()]
    return [tensor for tensor in values if tensor is not None]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_batches_move_to_a_device_as_a_whole(folder, noise):
    step = next(iter(data_module(folder, code_noise=noise).train_dataloader()))
    assert (step.microbatches[0].inputs is not None) == (noise > 0)
    moved = step.to("meta")
    assert [tensor.shape for tensor in tensors(moved)] == [tensor.shape for tensor in tensors(step)]
    assert all(tensor.is_meta for tensor in tensors(moved)) and not any(tensor.is_meta for tensor in tensors(step))
    for name in ("frames", "positions", "keys", "cursor"):
        assert getattr(moved, name) == getattr(step, name)


def test_batches_of_workers_may_be_more_open_files_than_the_process_starts_with(folder):
    """Each of the 672 tensors below is an open file; 1024 is a common limit, GPUs take hundreds."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 200, before[1]))
    try:
        loader = data_module(folder, global_batch_size=32, num_workers=2).train_dataloader()
        assert sum(len(tensors(step)) for step in list(islice(loader, 3))) == 672
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_in_pinned_memory_and_reach_the_gpu_unchanged(folder, workers):
    module = data_module(folder, num_workers=workers, pin_memory=True)
    for step in islice(module.train_dataloader(), 2):
        assert all(tensor.is_pinned() for tensor in tensors(step))
        for tensor, copy in zip(tensors(step), tensors(step.to("cuda")), strict=True):
            assert copy.is_cuda and torch.equal(copy.cpu(), tensor)
    for batch in module.val_dataloader():
        assert all(tensor.is_pinned() for tensor in vars(batch).values())
