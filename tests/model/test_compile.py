"""torch.compile on the blocks: the same numbers, whole graphs, and nothing compiled again once every shape was seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from csm.config import ActivationCheckpointing, LossConfig, TrainConfig, TrainerConfig
from csm.data.packing import RowBatch
from csm.model.backward import LocalEngine, backward_in_chunks
from csm.model.csm import CSM
from csm.model.loss import frame_chunks
from csm.training.module import CSMTrainingModule
from tests.tiny import conversation, forward_backward, inputs, rows, tiny_model

CHUNK = 8  # frames per pass of the depth decoder


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_model(backend: str, activation_checkpointing: ActivationCheckpointing) -> CSM:
    model = tiny_model()
    for block in (*model.backbone.layers, *model.decoder.layers):
        block.activation_checkpointing = activation_checkpointing
        block.compile(fullgraph=True, dynamic=False, backend=backend)  # fullgraph: a graph break is an error
    return model


class RankEngine(LocalEngine):
    data_ranks = (0, 1)


def gradients(model: CSM, batch) -> dict[str, torch.Tensor]:
    forward_backward(model, batch, CHUNK, LossConfig(), 20.0)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.slow
def test_compiled_blocks_compute_the_same():
    """With activations recomputed selectively, which the compiler has to follow into the block."""
    batch = rows([[conversation(1)], [conversation(2, (5,))]], ratio=4)
    expected = gradients(tiny_model(), batch)
    found = gradients(compiled_model("inductor", ActivationCheckpointing.selective), batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_no_size_of_a_batch_is_compiled_again_after_warm_up():
    """Validation batches of 20 different numbers of frames, most of them fewer than a chunk; and training batches whose
    number of slots varies, because the depth decoder is trained on every frame."""
    model = compiled_model("inductor", ActivationCheckpointing.none)
    config = TrainConfig(
        model=model.config,
        loss=LossConfig(decoder_chunk=16, decoder_frame_ratio=1),
        trainer=TrainerConfig(compile=True, max_steps=1),
    )
    module, engine, single = CSMTrainingModule(config, model), RankEngine(model), tiny_model()

    def step(frames: int) -> None:
        batch = rows([[conversation(frames, (frames,))]])
        batch = replace(batch, slots=batch.slots[:, : frames + 1], slot_weights=batch.slot_weights[:, : frames + 1])
        with module.evaluating():
            found = module.validation_step(batch, engine, num_slots=frames + 1)
        with torch.no_grad():
            torch.testing.assert_close(found, single(**inputs(batch)).stacked(), atol=1e-3, rtol=1e-4)
        module.training_step(batch, engine, 20.0, last=True)
        model.zero_grad()

    step(30)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for frames in range(1, 21):
            step(frames)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention_mask", "block_mask"])
def test_nothing_is_compiled_again_after_the_first_step(kind):
    """Training steps and validation batches of ever different content; validation has a varying number of frames."""
    model = compiled_model("aot_eager", ActivationCheckpointing.none)

    def arguments(batch: RowBatch) -> dict[str, torch.Tensor | BlockMask]:
        return inputs(batch) | {"attention_mask": getattr(batch, kind)()}

    def step(seed: int) -> None:
        batch = rows([[conversation(seed, (3 + seed, 9))], [conversation(seed + 1, (4,))]], ratio=4, seed=seed)
        config = LossConfig(decoder_chunk=CHUNK)
        backward_in_chunks(LocalEngine(model), arguments(batch), config, 20.0)
        model.zero_grad()
        with torch.no_grad():
            _, frames = model(**arguments(rows([[conversation(seed, (2 + seed, 7))], []])), method="backbone_losses")
            for chunk in frame_chunks(frames, CHUNK):
                model(chunk, method="decoder_losses")

    step(0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            step(seed)
        with pytest.raises(torch._dynamo.exc.RecompileError):  # a new shape would have been noticed
            model.backbone.layers[0](torch.zeros(1, 3, 48), (torch.ones(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)), None)
