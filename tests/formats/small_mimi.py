"""Mimi with narrow layers: as many tensors under the same names as the published one, in 4 MB instead of 380."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from moshi.models import loaders
from moshi.quantization.core_vq import EuclideanCodebook
from safetensors.torch import save_file

from csm.formats.mimi import HF_CODEC_CONFIG

WIDTH, FILTERS, CODEBOOK_DIM, FFN_DIM = 32, 2, 12, 40

MOSHI = {
    "seanet": {"dimension": WIDTH, "n_filters": FILTERS},
    "quantizer": {"dimension": CODEBOOK_DIM, "input_dimension": WIDTH, "output_dimension": WIDTH},
    "transformer": {
        "d_model": WIDTH,
        "dim_feedforward": FFN_DIM,
        "input_dimension": WIDTH,
        "output_dimensions": [WIDTH],
    },
}
HF = {
    "hidden_size": WIDTH,
    "num_filters": FILTERS,
    "codebook_dim": CODEBOOK_DIM,
    "vector_quantization_hidden_dimension": CODEBOOK_DIM,
    "upsample_groups": WIDTH,
    "intermediate_size": FFN_DIM,
    "head_dim": WIDTH // 8,
}


@contextmanager
def narrow() -> Iterator[None]:
    """Every Mimi that is built inside, by moshi or from an export's config.json, has these widths."""
    with pytest.MonkeyPatch.context() as patch:
        published = loaders._mimi_config
        parts = {part: {**published[part], **widths} for part, widths in MOSHI.items()}
        patch.setattr(loaders, "_mimi_config", {**published, **parts})
        for key, value in HF.items():
            patch.setitem(HF_CODEC_CONFIG, key, value)
        yield


def save_small_mimi(path: Path) -> Path:
    """Random weights in moshi's layout; untrained codebooks are all zeros, so they are filled."""
    torch.manual_seed(0)
    with narrow():
        model = loaders.get_mimi(None, num_codebooks=32)
    for module in model.modules():
        if isinstance(module, EuclideanCodebook):
            module.embedding_sum.normal_(std=0.05)
            module._initialized.fill_(1)
    save_file(model.state_dict(), path)
    return path
