"""Quantization schemes: which linear layers, to which numbers, with which of torchao's configurations.

    int8          weights int8, a scale for each row; products in the dtype of the activations
    int8-dynamic  the same, and activations int8, a scale for each position; products of integers
    int4          weights int4, a scale and a zero for each 64 of a row (HQQ); CUDA and bf16 only
    fp8           weights float8 (e4m3), a scale for each row; products in the dtype of the activations

Only the linear layers of the two stacks: embeddings, heads, the projection, norms and the codec stay as they are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from csm.config import CSMConfig
from csm.model.csm import CSM

SCHEMES = ("int8", "int8-dynamic", "int4", "fp8")
PARTS = ("backbone", "decoder")
INT4_GROUP = 64


@dataclass(frozen=True)
class Quantization:
    """scheme: one of SCHEMES; parts: those of PARTS whose layers are quantized; torchao: the version that did it.

    Raises ValueError for other values.
    """

    scheme: str
    parts: tuple[str, ...] = PARTS
    torchao: str = ""

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"quantization scheme {self.scheme!r}: must be one of {', '.join(SCHEMES)}")
        if not self.parts or any(part not in PARTS for part in self.parts):
            raise ValueError(f"parts to quantize {','.join(self.parts)!r}: must be some of {', '.join(PARTS)}")

    def layers(self, config: CSMConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that are quantized."""
        with torch.device("meta"):
            modules = CSM(config).named_modules()
        prefixes = tuple(f"{part}.layers." for part in self.parts)
        return {
            f"{name}.weight": tuple(module.weight.shape)
            for name, module in modules
            if isinstance(module, nn.Linear) and name.startswith(prefixes)
        }

    def check(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Raises ValueError where the scheme does not run: no torchao, another device, another dtype."""
        load_torchao()
        if self.scheme == "int4" and torch.device(device).type != "cuda":
            raise ValueError(
                f"scheme int4 needs a GPU: its kernels are CUDA's alone, and the device is {device}; choose int8, "
                "int8-dynamic or fp8 here"
            )
        if self.scheme == "int4" and dtype != torch.bfloat16:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"scheme int4 needs weights in bfloat16, and these are {name}; give dtype bf16")


def load_torchao() -> ModuleType:
    """torchao. Raises ValueError if it is not installed."""
    try:
        import torchao
    except ImportError:
        raise ValueError('quantization needs torchao: pip install "csm-train[quantize]"') from None
    return torchao


def quantize_weight(weight: Tensor, scheme: str) -> Tensor:
    """Weight [out, in] of a linear layer -> torchao's tensor of the same shape and dtype.

    int4 works on CUDA, the others on every device, the meta device included.
    """
    load_torchao()
    from torchao.quantization import quantize_

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # version 1 of int8 is said to be old; version 2 errs ten times as much in 0.15
        quantize_(nn.ModuleList([linear]), _torchao_config(scheme), lambda module, name: isinstance(module, nn.Linear))
    return linear.weight.detach()


def _torchao_config(scheme: str) -> Any:
    """`set_inductor_config` would switch TF32 on for the whole process."""
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )

    if scheme == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if scheme == "int8-dynamic":
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if scheme == "fp8":
        return Float8WeightOnlyConfig(set_inductor_config=False)
    return Int4WeightOnlyConfig(
        group_size=INT4_GROUP,
        int4_packing_format="tile_packed_to_4d",  # the default needs fbgemm-gpu-genai
        int4_choose_qparams_algorithm="hqq",
        set_inductor_config=False,
    )
