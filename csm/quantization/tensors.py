"""Quantized tensors as plain ones and back, without pickling.

A quantized weight of torchao is a tree of plain tensors ("leaves": integers, scales) and of settings. The settings
follow from the scheme, the shape and the dtype: they are taken from a *template*, a weight without values that torchao
quantizes. So files hold leaves alone, and nothing in a file decides what is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from csm.quantization.schemes import quantize_weight

_SCHEME_OF = {
    "AffineQuantizedTensor": "int8",
    "LinearActivationQuantizedTensor": "int8-dynamic",
    "Int4TilePackedTo4dTensor": "int4",
    "Float8Tensor": "fp8",
}
"""By the class of torchao's tensor."""


def is_quantized(tensor: Tensor) -> bool:
    return is_traceable_wrapper_subclass(tensor)


def leaves(tensor: Tensor) -> dict[str, Tensor]:
    """The plain tensors of a quantized one, by their paths, such as "tensor_impl.int_data"."""
    return dict(_leaves(tensor, ""))


def _leaves(tensor: Tensor, path: str) -> Iterator[tuple[str, Tensor]]:
    if not is_traceable_wrapper_subclass(tensor):
        yield path, tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _leaves(getattr(tensor, name), f"{path}.{name}" if path else name)


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the leaves of quantized weights in their place, under the weight's name and the leaf's path."""
    return {
        f"{name}.{path}" if path else name: leaf
        for name, tensor in tensors.items()
        for path, leaf in leaves(tensor).items()
    }


def with_leaves(template: Tensor, values: Mapping[str, Tensor], path: str = "") -> Tensor:
    """A tensor like `template` whose leaves are `values`."""
    if not is_traceable_wrapper_subclass(template):
        return values[path]
    names, settings = template.__tensor_flatten__()
    inner = {name: with_leaves(getattr(template, name), values, f"{path}.{name}" if path else name) for name in names}
    rebuild = type(template).__tensor_unflatten__
    with torch.inference_mode():
        return rebuild(inner, settings, template.size(), template.stride())


def as_parameter(weight: Tensor, requires_grad: bool = False) -> nn.Parameter:
    """A weight as a module's parameter; a quantized one is for computations without gradients.

    float8's linear layers fail in inference mode unless their weights, the parameters themselves, were made in it.
    """
    if not is_quantized(weight):
        return nn.Parameter(weight, requires_grad)
    with torch.inference_mode():
        return nn.Parameter(weight, requires_grad=False)


def template(scheme: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "meta") -> Tensor:
    """A quantized weight without meaning. On the meta device it takes no memory; int4 can be packed on CUDA only."""
    return quantize_weight(torch.zeros(shape, dtype=dtype, device=device), scheme)


def fuse_rows(weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One weight with the rows of all, [sum of out, in], and the parts again as views of it.

    Weights are all plain, or all quantized by one scheme: every row has scales of its own, so that no number changes.
    """
    if not is_quantized(weights[0]):
        fused = torch.cat(list(weights))
        return fused, list(fused.split([len(weight) for weight in weights]))
    rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    scheme, device = _SCHEME_OF[type(weights[0]).__name__], "meta"
    if scheme == "int4":
        device = str(weights[0].device)
    like = template(scheme, (rows, columns), weights[0].dtype, device)
    parts = [leaves(weight) for weight in weights]
    fused_leaves: dict[str, Tensor] = {}
    views: list[dict[str, Tensor]] = [{} for _ in weights]
    for name, wanted in leaves(like).items():
        sizes = list(zip(wanted.shape, parts[0][name].shape, strict=True))
        axis = next((axis for axis, (whole, part) in enumerate(sizes) if whole != part), 0)  # that of the rows
        fused_leaves[name] = torch.cat([part[name] for part in parts], dim=axis)
        assert fused_leaves[name].shape == wanted.shape, (name, wanted.shape)
        pieces = fused_leaves[name].split([part[name].shape[axis] for part in parts], dim=axis)
        for view, piece in zip(views, pieces, strict=True):
            view[name] = piece
    return with_leaves(like, fused_leaves), [with_leaves(w, view) for w, view in zip(weights, views, strict=True)]
