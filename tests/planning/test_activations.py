"""The list of saved tensors against what autograd really saves."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from csm.config import ActivationCheckpointing, RopeConfig, TransformerConfig
from csm.model.transformer import Transformer
from csm.planning.activations import (
    BLOCK,
    Precision,
    backbone_bytes,
    decoder_bytes,
    decoder_input_bytes,
    saved_bytes,
    stack_bytes,
)
from tests.tiny import conversation, rows, tiny_config, tiny_model

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


def weight_casts(module: nn.Module) -> int:
    """Bytes of the bf16 copies that autocast makes of the linear layers' weights, and that are kept: down_proj's is
    made again."""
    layers = [layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and "down" not in name]
    return sum(2 * layer.weight.numel() for layer in layers)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("precision", list(Precision))
def test_a_stack_saves_what_the_list_says(precision, masked):
    torch.manual_seed(0)
    batch, length = 2, 80  # longer than what the CPU's attention handles by plain products under autocast
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    stack = Transformer(STACK, RopeConfig(), 1e-5).to(dtype)
    x = torch.randn(batch, length, STACK.dim, dtype=dtype, requires_grad=True)
    positions = torch.arange(length)[None]
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool).tril() if masked else None
    autocast = torch.autocast("cpu", torch.bfloat16) if precision is Precision.autocast else nullcontext()
    with (saved := SavedBytes(*stack.parameters())), autocast:
        stack(x, positions, mask)
    expected = stack_bytes(STACK, length, precision, ActivationCheckpointing.none, masked) * batch * length
    expected += length * 4 * STACK.dim // STACK.heads  # rotary positions: cosines and sines, the same for both rows
    norms = 2 * STACK.layers + 1
    if precision is not Precision.fp32 and masked:  # the list is a GPU's; this CPU also keeps the mask, in bf16
        expected += STACK.layers * batch * length * length * 2
    if precision is Precision.autocast:
        expected += weight_casts(stack)
    if precision is Precision.bf16:
        expected += norms * STACK.dim * 4  # fp32 copies of the norms' weights
    assert saved.total == expected


def test_the_model_saves_what_the_lists_say():
    """Backbone with embeddings, and depth decoder, as CSM calls them."""
    model, config = tiny_model(), tiny_config()
    batch = rows([[conversation(0)], [conversation(1)]], max_seq_len=64)
    with (saved := SavedBytes(*model.parameters())):
        states = model.backbone_states(batch.tokens, batch.mask, batch.positions, batch.attention_mask())
        model.codebook0_head(states)
    expected = backbone_bytes(config, 64, Precision.fp32, ActivationCheckpointing.none) * 2 * 64
    assert saved.total == pytest.approx(expected, rel=0.01)
    codes = torch.randint(0, 13, (50, config.num_codebooks - 1))
    states = torch.randn(50, config.backbone.dim, requires_grad=True)
    with (saved := SavedBytes(*model.parameters())):
        model.decoder_logits(states, codes)
    expected = (
        decoder_bytes(config, Precision.fp32, ActivationCheckpointing.none)
        + decoder_input_bytes(config, Precision.fp32)
    ) * 50
    assert saved.total == pytest.approx(expected, rel=0.01)


def test_checkpointing_keeps_less():
    kept = [saved_bytes(BLOCK, STACK, 80, Precision.autocast, level) for level in ActivationCheckpointing]
    assert kept[0] > kept[1] > kept[2] == 4 * STACK.dim
