"""Attention over packed documents: flex attention, which CUDA uses, against the dense mask that CPUs use."""

from __future__ import annotations

import pytest
import torch

from csm.config import LossConfig
from tests.tiny import conversation, inputs, rows, tiny_model


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_dense_mask():
    """Documents of unequal length, rows longer than one block of 128, an empty tail; values and all gradients."""
    documents = [[conversation(i, (40 + i, 17)) for i in range(2)], [conversation(9, (5,))]]
    batch = rows(documents, max_seq_len=157)
    assert int((batch.documents < 0).sum()) > 100
    results = []
    for mask in (batch.attention_mask(), batch.block_mask()):
        model = tiny_model()
        sums = model(**inputs(batch) | {"attention_mask": mask})
        sums.loss(LossConfig(), 50.0).backward()
        results.append((sums.stacked(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-3, rtol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)
