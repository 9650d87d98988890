"""Floating-point operations of a training step, and what processors can do: the two halves of MFU.

    FLOPs = 6 N_b P + 12 L_b D sum(len^2)                      backbone: linear layers, attention
          + 6 D V C                                            codebook 0 head
          + 6 (K N_d + K D d + (K-1) d V) F + 12 L_d d K^2 F   depth decoder, projection, heads; its attention

Without a depth decoder (`model.layout=delay` or `flat`) L_d = N_d = 0, d = D, and nothing is projected.

P non-empty positions, `len` the lengths of the documents, C positions whose codebook 0 is predicted, F frames the depth
decoder computes, N_b and N_d the elements of the linear layers of the two stacks, L layers, D and d widths.

This is the convention of PaLM (appendix B), applied to both stacks: a multiply-add is two operations, the backward pass
costs twice the forward pass, and attention is counted in full although half of it is masked. Embedding look-ups,
norms, rotary positions, softmax and the optimizer are not counted. Padding and empty slots are no work done: leave
them out for MFU.

MFU (model FLOPs utilization) compares these with the processors' peak. HFU (hardware FLOPs utilization) adds what
activation checkpointing computes a second time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from csm.config import CodeLayout, CSMConfig, TransformerConfig


@dataclass(frozen=True)
class Work:
    """The work of a microbatch, or of an optimizer step (the sum of its microbatches)."""

    positions: int  # non-empty positions
    squared_lengths: int  # sum over documents of length^2
    c0_positions: int  # positions whose codebook 0 is predicted
    frames: int  # frames that the depth decoder computes


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of forward and backward pass, by part of the model."""

    backbone: float
    backbone_attention: float
    codebook0_head: float
    projection: float
    decoder: float
    decoder_attention: float
    audio_head: float

    @property
    def blocks(self) -> float:
        """Of the transformer blocks of both stacks, which activation checkpointing works on."""
        return self.backbone + self.backbone_attention + self.decoder + self.decoder_attention

    @property
    def model(self) -> float:
        """FLOPs that MFU counts."""
        return self.blocks + self.codebook0_head + self.projection + self.audio_head

    @property
    def hardware_full_checkpointing(self) -> float:
        """FLOPs that HFU counts if every block is computed again in the backward pass (a third of its training FLOPs).

        Selective checkpointing keeps the results of matrix products, so there HFU equals MFU.
        """
        return self.model + self.blocks / 3

    def on_each_of(self, ranks: int) -> TrainingFlops:
        """The part that each of `ranks` tensor-parallel ranks computes: a share of the backbone, and all the rest."""
        return replace(self, backbone=self.backbone / ranks, backbone_attention=self.backbone_attention / ranks)


def linear_parameters(stack: TransformerConfig) -> int:
    """Elements of the linear layers of a stack: all of its parameters but the norms."""
    attention = 2 * stack.dim * stack.dim + 2 * stack.dim * stack.kv_heads * (stack.dim // stack.heads)
    return stack.layers * (attention + 3 * stack.dim * stack.ffn_dim)


def training_flops(config: CSMConfig, work: Work) -> TrainingFlops:
    """FLOPs of forward and backward pass over `work`, see the head of this file."""
    backbone, decoder, projected = config.backbone, config.decoder, work.frames
    codebooks, vocab = config.num_codebooks, config.audio_vocab_size
    if config.layout is not CodeLayout.depth:  # the other heads work on the backbone's states as they are
        decoder, projected = replace(backbone, layers=0), 0
    return TrainingFlops(
        backbone=6 * linear_parameters(backbone) * work.positions,
        backbone_attention=12 * backbone.layers * backbone.dim * work.squared_lengths,
        codebook0_head=6 * backbone.dim * vocab * work.c0_positions,
        projection=6 * codebooks * backbone.dim * decoder.dim * projected,
        decoder=6 * codebooks * linear_parameters(decoder) * work.frames,
        decoder_attention=12 * decoder.layers * decoder.dim * codebooks**2 * work.frames,
        audio_head=6 * (codebooks - 1) * decoder.dim * vocab * work.frames,
    )


@dataclass(frozen=True)
class Gpu:
    """A processor: dense bf16 matrix products with fp32 accumulation (makers advertise twice that, for sparse ones)."""

    key: str  # as `csm plan gpu=...` takes it
    device: str  # regular expression found in torch.cuda.get_device_name()
    peak_flops: float  # per second
    memory_gib: float  # as torch reports it, error correction subtracted


# Data sheets of the makers. The first expression that is found in a device name decides: the special cases come first.
GPUS = (
    Gpu("gb200", r"GB200", 2500e12, 184.0),
    Gpu("b200", r"B200", 2250e12, 178.0),
    Gpu("gh200", r"GH200", 989.4e12, 94.5),
    Gpu("h200_nvl", r"H200 NVL", 835.5e12, 139.8),
    Gpu("h200", r"H200", 989.4e12, 139.8),
    Gpu("h100_nvl", r"H100 NVL", 835.5e12, 93.1),
    Gpu("h100_pcie", r"H100 PCIe", 756e12, 79.1),
    Gpu("h100", r"H100|H800", 989.4e12, 79.1),
    Gpu("h20", r"H20\b", 148e12, 95.0),
    Gpu("a100_40gb", r"A[18]00.*40GB", 312e12, 39.4),
    Gpu("a100", r"A[18]00", 312e12, 79.1),
    Gpu("a40", r"A40\b", 149.7e12, 44.4),
    Gpu("a30", r"A30\b", 165e12, 23.6),
    Gpu("a10g", r"A10G", 70e12, 22.0),
    Gpu("a10", r"A10\b", 125e12, 22.0),
    Gpu("l40s", r"L40S", 362e12, 44.4),
    Gpu("l40", r"L40\b", 181e12, 44.4),
    Gpu("l4", r"L4\b", 121e12, 22.0),
    Gpu("a6000", r"RTX A6000", 154.8e12, 47.4),
    Gpu("rtx6000_ada", r"RTX 6000 Ada", 364.2e12, 47.4),
    Gpu("rtx5090", r"RTX 5090$", 209.5e12, 31.4),  # $: laptops carry other chips under the same number
    Gpu("rtx4090", r"RTX 4090$", 165.2e12, 23.6),
    Gpu("rtx3090", r"RTX 3090$", 71e12, 23.6),
    Gpu("mi300x", r"MI300X", 1307.4e12, 191.7),
)


def find_gpu(device_name: str) -> Gpu | None:
    """The entry of a `torch.cuda.get_device_name()`, such as "NVIDIA H100 80GB HBM3"; None for one not listed."""
    return next((gpu for gpu in GPUS if re.search(gpu.device, device_name)), None)
