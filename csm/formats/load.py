"""Entry points for users: a model, or a generator ready to speak, from any checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from csm.formats.open import open_checkpoint
from csm.formats.quantized import load_quantized
from csm.inference.generator import Generator
from csm.model.csm import CSM
from csm.quantization.schemes import PARTS, Quantization
from csm.watermark import load_watermark

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def generation_dtype(device: str | torch.device, name: str | None = None) -> torch.dtype | None:
    """Dtype of weights to generate with: the one named in DTYPES, else bf16 on CUDA and None, as stored, elsewhere."""
    if name is not None:
        return DTYPES[name]
    return torch.bfloat16 if torch.device(device).type == "cuda" else None


def load_model(path_or_repo: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> CSM:
    """The model of a checkpoint in any layout (native, Sesame's, Hugging Face's, training), local or on the hub.

    dtype: of the weights; None keeps the stored one. Raises ValueError naming the first tensor that is missing,
    unexpected or of another shape, and FileNotFoundError if there is no such checkpoint.
    """
    return open_checkpoint(path_or_repo).load_model(device, dtype)


def load_generator(
    path_or_repo: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    codec_path: str | None = None,
    tokenizer_path: str | None = None,
    quantize: str | None = None,
    quantize_parts: Sequence[str] = PARTS,
    watermark: str = "auto",
    **options: Any,
) -> Generator:
    """Model, codec and tokenizer of a checkpoint in any layout, ready to speak.

    dtype: of the weights; None is bf16 on CUDA and the stored one elsewhere
    codec_path, tokenizer_path: local Mimi weights (moshi's file) and tokenizer, where the checkpoint carries none and
    the hub is not to be asked.
    quantize: int8, int8-dynamic, int4 or fp8, see docs/quantization.md; quantize_parts: backbone, decoder or both
    watermark: of `generate` and `stream`: auto, required, none or a backend, see docs/watermark.md
    options: those of `Generator`, such as slots and num_codebooks
    Raises what `load_model` raises, for codec and tokenizer as well, and ValueError for a scheme that cannot run.
    """
    options["watermark"] = load_watermark(watermark)
    dtype = dtype or generation_dtype(device)
    checkpoint = open_checkpoint(path_or_repo, codec_path, tokenizer_path)
    tokenizer = checkpoint.read_tokenizer()
    if quantize is None:
        model = checkpoint.load_model(device, dtype)
    else:
        model = load_quantized(checkpoint, Quantization(quantize, tuple(quantize_parts)), device, dtype)
    return Generator(model, checkpoint.read_codec(str(device)), tokenizer, share_weights=True, **options)


def load_csm_1b(
    path_or_repo: str | Path | torch.device = "sesame/csm-1b",
    device: str | torch.device = "cuda",
    codec_path: str | None = None,
    tokenizer_path: str | None = None,
) -> Generator:
    """A generator in bfloat16, with the signatures that Sesame published over time:

        load_csm_1b(device="cuda")       load_csm_1b("cuda")       load_csm_1b("ckpt.pt", "cuda")

    Any checkpoint that `load_generator` reads will do, of whatever size.
    """
    if isinstance(path_or_repo, torch.device) or (isinstance(path_or_repo, str) and _is_device_name(path_or_repo)):
        return load_csm_1b(device=path_or_repo, codec_path=codec_path, tokenizer_path=tokenizer_path)
    return load_generator(path_or_repo, device, torch.bfloat16, codec_path, tokenizer_path)


def _is_device_name(value: str) -> bool:
    if Path(value).exists():
        return False
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True
