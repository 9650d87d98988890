"""Mimi through transformers, for environments without moshi: the same codes and, up to rounding, the same sound.

transformers pads the features of a last frame that is not full, moshi the audio; here the audio is padded before, so
that all codes are equal. It needs a version of transformers whose Mimi attends to the last 250 steps, as the original
does (5.24 has it; 4.57 and 5.0 attend over the whole clip, which changes the codes after 10 s). It does not stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, MimiModel
from transformers.models.mimi import modeling_mimi

from csm.codec.base import Codec, CodecInfo, check_audio, check_codes, hash_tensors
from csm.codec.float32 import exact_float32
from csm.codec.streaming import StreamingDecoder
from csm.formats.mimi import CODEBOOKS, HF_CODEC_CONFIG, moshi_to_hf

HUB_REPO = "kyutai/moshiko-pytorch-bf16"
HUB_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"


def has_sliding_window() -> bool:
    """Whether the installed transformers attends as the original does."""
    return hasattr(modeling_mimi, "create_sliding_window_causal_mask")


class TransformersMimiCodec(Codec):
    """Mimi in float32, without gradients. Takes and has the weights of `MimiCodec`, and its identity."""

    def __init__(self, weights: Mapping[str, Tensor], num_codebooks: int, device: torch.device | str = "cpu") -> None:
        """weights: under moshi's names. Raises ValueError naming what is unexpected, missing or misshapen."""
        self._weights = dict(weights)
        config = AutoConfig.for_model(**HF_CODEC_CONFIG)
        try:
            model, found = MimiModel.from_pretrained(
                None, config=config, state_dict=moshi_to_hf(weights), output_loading_info=True
            )
        except RuntimeError as error:  # a tensor of another shape
            raise ValueError(
                f"not Mimi's weights ({' '.join(str(error).split())[:300]}); copy the model again"
            ) from error
        if found["missing_keys"] or found["mismatched_keys"]:
            names = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
            raise ValueError(f"not Mimi's weights ({names[0]} is missing or has another shape); copy the model again")
        self.model = model.float().to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        rate = config.sampling_rate
        self.info = CodecInfo("mimi", hash_tensors(self._weights), num_codebooks, config.codebook_size, 12.5, rate)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        repo: str = HUB_REPO,
        num_codebooks: int = CODEBOOKS,
        device: torch.device | str = "cpu",
    ) -> TransformersMimiCodec:
        """As `MimiCodec.load`, which says what is raised."""
        if not 1 <= num_codebooks <= CODEBOOKS:
            raise ValueError(f"codec.num_codebooks={num_codebooks}: Mimi has 1 to {CODEBOOKS}")
        if path is None:
            try:
                path = hf_hub_download(repo, HUB_FILE)
            except (OSError, ValueError) as error:
                raise FileNotFoundError(
                    f"Mimi's weights ({HUB_FILE} of {repo}) cannot be fetched ({type(error).__name__}); "
                    "give a local copy with codec.path=FILE, or use codec=spectral"
                ) from error
        elif not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; give Mimi's weights with codec.path=FILE")
        try:
            return cls(load_file(path), num_codebooks, device)
        except (SafetensorError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path}: not Mimi weights in moshi's safetensors format, such as {HUB_FILE} of {HUB_REPO} ({reason})"
            ) from error

    @classmethod
    def from_state_dict(
        cls, weights: Mapping[str, Tensor], num_codebooks: int = CODEBOOKS, device: torch.device | str = "cpu"
    ) -> TransformersMimiCodec:
        """Builds Mimi from tensors under moshi's names. Raises ValueError naming what is missing or misshapen."""
        return cls(weights, num_codebooks, device)

    def moshi_weights(self) -> dict[str, Tensor]:
        """The weights under moshi's names."""
        return self._weights

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Float audio [B, 1, N] at 24 kHz -> int64 codes [B, K, ceil(N / 1920)]."""
        check_audio(audio)
        whole = pad(audio.to(self.device, torch.float32), (0, -audio.shape[-1] % self.samples_per_frame))
        with exact_float32():
            return self.model.encode(whole, num_quantizers=self.num_codebooks).audio_codes

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Integer codes [B, k, T] of the first k codebooks -> float32 audio [B, 1, T * 1920]."""
        check_codes(codes, self.info)
        with exact_float32():
            return self.model.decode(codes.to(self.device, torch.int64)).audio_values

    def streaming_decoder(self, slots: int) -> StreamingDecoder:
        """Raises ValueError: transformers' Mimi decodes whole turns."""
        raise ValueError(
            "streaming with Mimi needs the package moshi; beside later versions than it asks for: "
            "pip install --no-deps moshi, and einops sphn sounddevice sentencepiece"
        )
