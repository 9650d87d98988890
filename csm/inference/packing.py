"""Matrices in the blocked layout of oneDNN: faster products for several rows on CPUs.

With rows of one slot a product is bound by reading the matrix, and the plain layout is as fast or faster. From 4 rows
on, packed ones take about 0.6 of the time (fp32, AVX-512): measured, see docs/inference.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csm.quantization.tensors import is_quantized

PACKED_FROM = 4
"""Slots of a step from which packed matrices pay."""


def packable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not is_quantized(weight)
        and torch.backends.mkldnn.is_available()
    )


def pack(weight: Tensor) -> Tensor:
    """`[out, in]` -> a copy that only `packed_product` can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FROM)


def packed_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x [N, in]`, a packed weight `[out, in]` -> `[N, out]`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
