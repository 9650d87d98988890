"""The list of saved tensors against what autograd really saves."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from csm.config import ActivationCheckpointing, RopeConfig, TransformerConfig
from csm.kernels import cpu
from csm.model.transformer import FeedForward, Transformer
from csm.planning.activations import (
    BLOCK,
    LOG_PROBABILITIES,
    Blocks,
    Precision,
    backbone_bytes,
    decoder_bytes,
    saved_bytes,
    stack_bytes,
)
from tests.tiny import conversation, inputs, rows, tiny_config, tiny_model

STACK = TransformerConfig(layers=3, dim=48, heads=6, kv_heads=3, ffn_dim=72)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of tensors saved for backward passes: every storage once, without those in `known`."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.kept: dict[int, Tensor] = {}  # the tensors themselves, so that no address is used twice

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.known:
            self.kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    @property
    def total(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


def weight_casts(module: nn.Module, fused: bool) -> int:
    """Bytes of the bf16 copies that autocast makes and keeps of the linear layers' weights: the fused SwiGLU does not
    keep that of down_proj."""
    layers = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not (fused and "down" in name)
    ]
    return sum(2 * layer.weight.numel() for layer in layers)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("precision", list(Precision))
def test_a_stack_saves_what_the_list_says(precision, masked, fused):
    """fused: with the CPU's SwiGLU; norms and attention are the CPU's in any case, and keep what a GPU's keep."""
    torch.manual_seed(0)
    batch, length = 2, 80  # longer than what the CPU's attention handles by plain products under autocast
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    stack = Transformer(STACK, RopeConfig(), 1e-5).to(dtype)
    cpu.install(stack)
    for layer in () if fused else stack.layers:
        layer.mlp.__class__ = FeedForward
    x = torch.randn(batch, length, STACK.dim, dtype=dtype, requires_grad=True)
    positions = torch.arange(length)[None]
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool).tril() if masked else None
    autocast = torch.autocast("cpu", torch.bfloat16) if precision is Precision.autocast else nullcontext()
    with (saved := SavedBytes(*stack.parameters())), autocast:
        stack(x, positions, mask)
    blocks = Blocks.fused if fused else Blocks.plain
    expected = stack_bytes(STACK, length, precision, ActivationCheckpointing.none, masked, blocks) * batch * length
    expected += length * 4 * STACK.dim // STACK.heads  # rotary positions: cosines and sines, the same for both rows
    norms = 2 * STACK.layers + 1
    if precision is not Precision.fp32 and masked:  # the list is a GPU's; this CPU also keeps the mask, in bf16
        expected += STACK.layers * batch * length * length * 2
    if precision is Precision.autocast:
        expected += weight_casts(stack, fused)
    if precision is Precision.bf16:
        expected += norms * STACK.dim * 4  # fp32 copies of the norms' weights
    assert saved.total == expected


def test_the_model_saves_what_the_lists_say():
    """Both halves of a training step's forward pass, losses included."""
    model, config = tiny_model(), tiny_config()
    cpu.install(model)
    batch = rows([[conversation(0)], [conversation(1)]], max_seq_len=64)
    arguments = inputs(batch)
    known = (*model.parameters(), batch.mask, batch.slots)
    with (saved := SavedBytes(*known)):
        _, frames = model(**arguments, method="backbone_losses")
    count = len(frames.weights)
    expected = backbone_bytes(config, 64, Precision.fp32, ActivationCheckpointing.none) * 2 * 64
    expected += (LOG_PROBABILITIES * config.audio_vocab_size + 8) * 2 * 63  # and the code of every target
    expected += 8 * count * (config.num_codebooks - 1)  # rows of the table
    assert saved.total == pytest.approx(expected, rel=0.01)
    with (saved := SavedBytes(*known, *frames)):
        model(frames, method="decoder_losses")
    expected = decoder_bytes(config, Precision.fp32, ActivationCheckpointing.none)
    expected += (LOG_PROBABILITIES * config.audio_vocab_size + 8) * (config.num_codebooks - 1)
    assert saved.total == pytest.approx(expected * count, rel=0.01)


def test_checkpointing_keeps_less():
    kept = [saved_bytes(BLOCK, STACK, 80, Precision.autocast, level) for level in ActivationCheckpointing]
    assert kept[0] > kept[1] > kept[2] == 4 * STACK.dim
