"""Attention over packed documents: flex attention, which CUDA uses, against the dense mask that CPUs use."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from csm.config import LossConfig
from tests.tiny import conversation, inputs, rows, tiny_model


def _has_gradients() -> bool:
    try:
        flex_attention(*torch.ones(3, 1, 1, 1, 16, requires_grad=True))
    except NotImplementedError:
        return False
    return True


FLEX_ON_CPU_HAS_GRADIENTS = _has_gradients()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_dense_mask():
    """Documents of unequal length, rows longer than one block of 128, an empty tail; values and, where torch
    differentiates flex attention on CPUs (2.9 does, 2.14 does not), all gradients."""
    documents = [[conversation(i, (40 + i, 17)) for i in range(2)], [conversation(9, (5,))]]
    batch = rows(documents, max_seq_len=157)
    assert int((batch.documents < 0).sum()) > 100
    results = []
    for mask in (batch.attention_mask(), batch.block_mask()):
        model = tiny_model()
        with torch.set_grad_enabled(FLEX_ON_CPU_HAS_GRADIENTS):
            sums = model(**inputs(batch) | {"attention_mask": mask})
        if FLEX_ON_CPU_HAS_GRADIENTS:
            sums.loss(LossConfig(), 50.0).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert bool(gradients) == FLEX_ON_CPU_HAS_GRADIENTS
        results.append((sums.stacked(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-3, rtol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)
