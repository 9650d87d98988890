"""Quantized models: weights of a checkpoint quantized, loaded into a model, and read from a native directory.

A quantized weight is kept as its leaves (csm/quantization/tensors.py), under the weight's name and the leaf's path:

    backbone.layers.0.attn.q_proj.weight.tensor_impl.int_data     int8 [out, in]
    backbone.layers.0.attn.q_proj.weight.tensor_impl.scale        [out]

config.json says under "quantization" by which scheme, in which parts, and by which version of torchao: the paths, and
what the leaves mean, are that version's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from csm.codec import CodecInfo
from csm.config import CSMConfig
from csm.formats import native
from csm.formats.layouts import Checkpoint, NativeCheckpoint, native_codec
from csm.formats.tensors import LazyTensor, Weights, check_tensors, unite_matrices
from csm.formats.tensors import cast as cast_weights
from csm.formats.weight_names import shapes
from csm.model.csm import CSM
from csm.quantization.schemes import Quantization, load_torchao, quantize_weight
from csm.quantization.tensors import as_parameter, leaves, template, with_leaves

HEAD = "codebook0_head.weight"
"""A matrix that is never quantized; all have its dtype."""


@dataclass(frozen=True, kw_only=True)
class QuantizedCheckpoint(NativeCheckpoint):
    """A directory that `csm quantize` wrote. `weights` holds leaves in place of the quantized weights."""

    layout: ClassVar[str] = "quantized"

    quantization: Quantization

    @classmethod
    def open(cls, folder: Path, weights: Weights, file: Path) -> QuantizedCheckpoint:
        """weights: the contents of `file`. Raises ValueError if a tensor is missing or config.json says nonsense."""
        config, entry = native.read_model_config(folder), native.read_config(folder)
        try:
            scheme, parts, torchao = (entry["quantization"][key] for key in ("scheme", "parts", "torchao"))
            quantization = Quantization(scheme, tuple(parts), torchao)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'config.json'}: not a quantization ({error}); quantize the model again"
            ) from None
        quantized = quantization.layers(config)
        plain = {name: tensor for name, tensor in weights.items() if _weight_of(name) not in quantized}
        expected = {name: shape for name, shape in shapes(config).items() if name not in quantized}
        check_tensors(plain, expected, str(file))
        info = CodecInfo.from_dict(entry["codec"]["info"])
        return cls(
            path=folder,
            config=config,
            weights=weights,
            codec=native_codec(folder, entry, info),
            codec_info=info,
            training=entry.get("training", {}),
            quantization=quantization,
        )

    def load_to_score(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CSM:
        """As `Checkpoint.load_to_score`; scales and plain weights take `dtype`.

        Raises ValueError for another torchao.
        """
        installed = load_torchao().__version__
        if installed != self.quantization.torchao:
            raise ValueError(
                f"{self.path} was quantized with torchao {self.quantization.torchao}, and {installed} is installed, "
                "which may read it otherwise; quantize the model again, or install that version"
            )
        return _build(self.config, self.weights, self.quantization, device, dtype, str(self.path))

    def original_weights(self) -> Weights:
        raise ValueError(
            f"{self.path} is quantized ({self.quantization.scheme}) and can only be spoken from; give the model that "
            "it was made from"
        )


def load_quantized(
    checkpoint: Checkpoint,
    quantization: Quantization,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> CSM:
    """The model of a checkpoint, quantized while it is loaded: bit for bit what a quantized directory gives."""
    weights = quantize_weights(checkpoint, quantization, device, dtype)
    return _build(checkpoint.config, weights, quantization, device, dtype, str(checkpoint.path))


def quantize_weights(
    checkpoint: Checkpoint, quantization: Quantization, device: str | torch.device, dtype: torch.dtype | None
) -> Weights:
    """The weights of a checkpoint, as they are kept. One at a time is quantized, when its first leaf is read.

    Raises ValueError where the scheme does not run (`Quantization.check`), if the checkpoint is quantized already, or
    if it is of a layout that cannot speak.
    """
    checkpoint.check_depth("quantization")
    stored = checkpoint.original_weights()
    weights = unite_matrices(stored) if dtype is None else cast_weights(stored, dtype)
    quantization.check(device, weights[HEAD].dtype)
    layers = quantization.layers(checkpoint.config)

    @lru_cache(maxsize=1)
    def quantized(name: str) -> dict[str, Tensor]:
        return leaves(quantize_weight(weights[name].read().to(device), quantization.scheme))

    kept: Weights = {}
    for name, tensor in weights.items():
        if name not in layers:
            kept[name] = tensor
            continue
        for path, leaf in leaves(_template(quantization, tensor.shape, tensor.dtype, device)).items():

            def read(name: str = name, path: str = path) -> Tensor:
                return quantized(name)[path].cpu()

            kept[f"{name}.{path}"] = LazyTensor(tuple(leaf.shape), leaf.dtype, read)
    return kept


def _build(
    config: CSMConfig,
    weights: Weights,
    quantization: Quantization,
    device: str | torch.device,
    dtype: torch.dtype | None,
    where: str,
) -> CSM:
    computed_in = dtype or weights[HEAD].dtype
    quantization.check(device, computed_in)
    with torch.device("meta"):
        model = CSM(config)
    layers = quantization.layers(config)
    for name, shape in layers.items():
        like = _template(quantization, shape, computed_in, device)
        values = {}
        for path, leaf in leaves(like).items():
            stored = weights.get(f"{name}.{path}")
            if stored is None or stored.shape != tuple(leaf.shape):
                found = "is missing" if stored is None else f"has shape {stored.shape}, not {tuple(leaf.shape)}"
                raise ValueError(f"{where}: tensor {name}.{path} {found}; quantize the model again")
            values[path] = stored.read().to(device=device, dtype=leaf.dtype)
        linear = cast(nn.Linear, model.get_submodule(name.removesuffix(".weight")))
        linear.weight = as_parameter(with_leaves(like, values))
    plain = {
        name: tensor.read().to(device=device, dtype=dtype)
        for name, tensor in weights.items()
        if _weight_of(name) not in layers
    }
    model.load_state_dict(plain, strict=False, assign=True)
    return model


def _template(
    quantization: Quantization, shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device
) -> Tensor:
    return template(quantization.scheme, shape, dtype, device if quantization.scheme == "int4" else "meta")


def _weight_of(name: str) -> str:
    """The weight that a tensor is, or is a leaf of."""
    return name.partition(".weight")[0] + ".weight" if ".weight" in name else name
