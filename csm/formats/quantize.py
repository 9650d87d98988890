"""`csm quantize`: writes a checkpoint as a quantized model directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from csm.formats.card import model_card
from csm.formats.export import model_directory, write_native_files
from csm.formats.layouts import Checkpoint
from csm.formats.quantized import quantize_weights
from csm.quantization.schemes import Quantization, load_torchao


def quantize(
    checkpoint: Checkpoint,
    scheme: str,
    parts: tuple[str, ...],
    output: Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the directory, whole or not at all, one tensor at a time.

    device: where weights are quantized; int4 needs CUDA
    dtype:  of the plain weights and of scales, None keeps the stored one
    Raises what `export` and `quantize_weights` raise.
    """
    quantization = Quantization(scheme, parts, load_torchao().__version__)
    weights = quantize_weights(checkpoint, quantization, device, dtype)
    with model_directory(output, overwrite) as folder:
        write_native_files(checkpoint, weights, folder, asdict(quantization))
        (folder / "README.md").write_text(model_card(checkpoint, output.name, "native"), encoding="utf-8")
