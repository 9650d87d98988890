"""Kyutai's Mimi, the codec of the released CSM, through the moshi package.

24 kHz, 12.5 frames/s, codebooks of 2048 entries. CSM uses 32 of them; moshi alone would default to 8.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import Tensor

from csm.codec.base import Codec, CodecInfo, check_audio, check_codes, hash_tensors
from csm.codec.float32 import exact_float32

try:
    from moshi.models import MimiModel, loaders
    from moshi.utils.compile import no_compile

    from csm.codec.mimi_streaming import MimiStreamingDecoder
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Mimi needs the package moshi ({error}): pip install moshi, or use codec=spectral"
    ) from error

MAX_CODEBOOKS = 32
TRANSFORMERS_TENSOR = "encoder.layers.0.conv.weight"
"""A tensor of every Mimi under transformers' names, which moshi calls otherwise."""


class MimiCodec(Codec):
    """Mimi in float32, without gradients. `model` is moshi's own object; it is never put into a streaming state."""

    def __init__(self, model: MimiModel) -> None:
        """Takes a moshi model whose codebooks are set; `load` builds one from its weights."""
        self.model = model.float().eval().requires_grad_(False)
        self.device = next(model.parameters()).device
        self.info = CodecInfo(
            name="mimi",
            weights_hash=hash_tensors(model.state_dict()),
            num_codebooks=model.num_codebooks,
            codebook_size=model.cardinality,
            frame_rate=model.frame_rate,
            sample_rate=model.sample_rate,
        )

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        repo: str = loaders.DEFAULT_REPO,
        num_codebooks: int = 32,
        device: torch.device | str = "cpu",
    ) -> MimiCodec:
        """Builds Mimi from a local safetensors file in moshi's format, or from hub repository `repo` if `path` is None.

        Raises:
            FileNotFoundError: no such file, or the hub does not answer and has no copy in the local cache.
            ValueError: the file holds something else, or `num_codebooks` is out of range.
        """
        if not 1 <= num_codebooks <= MAX_CODEBOOKS:
            raise ValueError(f"codec.num_codebooks={num_codebooks}: Mimi has 1 to {MAX_CODEBOOKS}")
        if path is None:
            try:
                path = hf_hub_download(repo, loaders.MIMI_NAME)
            except (OSError, ValueError) as error:
                raise FileNotFoundError(
                    f"Mimi's weights ({loaders.MIMI_NAME} of {repo}) cannot be fetched ({type(error).__name__}); "
                    "give a local copy with codec.path=FILE, or use codec=spectral"
                ) from error
        elif not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; give Mimi's weights with codec.path=FILE")
        try:
            model = loaders.get_mimi(path, device=device, num_codebooks=num_codebooks)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, KeyError, EOFError) as error:
            if isinstance(error, (pickle.UnpicklingError, KeyError, EOFError)):
                reason = "it is neither safetensors nor a pickled file of moshi's"
            elif f'"{TRANSFORMERS_TENSOR}"' in str(error):
                reason = "it has transformers' layout, as kyutai/mimi"
            else:
                reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path}: not Mimi weights in moshi's safetensors format, such as {loaders.MIMI_NAME} of "
                f"{loaders.DEFAULT_REPO} ({reason})"
            ) from error
        return cls(model)

    @classmethod
    def from_state_dict(
        cls, weights: Mapping[str, Tensor], num_codebooks: int = 32, device: torch.device | str = "cpu"
    ) -> MimiCodec:
        """Builds Mimi from tensors under moshi's names. Raises ValueError naming what is missing or misshapen."""
        model = loaders.get_mimi(None, device=device, num_codebooks=num_codebooks)
        try:
            model.load_state_dict(dict(weights))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"not Mimi's weights ({reason[:300]}); copy the model again") from error
        return cls(model)

    def moshi_weights(self) -> dict[str, Tensor]:
        """The weights under moshi's names."""
        return self.model.state_dict()

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Float audio [B, 1, N] at 24 kHz -> int64 codes [B, K, ceil(N / 1920)].

        Mimi is causal, so the padding after a turn in a batch does not change its codes, up to the rounding of float
        sums: where two entries are almost equally near, the code may differ between batches.
        """
        check_audio(audio)
        with exact_float32(), no_compile():  # without `no_compile`, moshi needs a C compiler
            return self.model.encode(audio.to(self.device, torch.float32))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Integer codes [B, k, T] of the first k codebooks -> float32 audio [B, 1, T * 1920].

        Raises ValueError for codes of another shape or out of range.
        """
        check_codes(codes, self.info)
        with exact_float32(), no_compile():
            return self.model.decode(codes.to(self.device, torch.int64))

    def streaming_decoder(self, slots: int) -> MimiStreamingDecoder:
        return MimiStreamingDecoder(self.model, slots)
