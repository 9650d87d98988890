"""Bytes that training keeps whatever the batch: weights, optimizer state, and buffers of communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from csm.config import CSMConfig, LoraConfig, StrategyConfig, StrategyName
from csm.model.csm import CSM
from csm.model.flops import linear_parameters
from csm.model.freeze import freeze
from csm.model.lora import apply_lora
from csm.planning.activations import Precision

DEEPSPEED_BUCKET = 200_000_000  # elements; reduce_bucket_size of csm/parallel/strategies.py, two of them in flight
DEEPSPEED_LIVE = 1_000_000_000  # elements; DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Parameters:
    """Elements of a model's parameters, by part: those that are there and those that are trained."""

    total: dict[str, int]
    trained: dict[str, int]
    block: int  # one of the backbone

    @staticmethod
    def of(config: CSMConfig, lora: LoraConfig, frozen: Sequence[str] = ()) -> Parameters:
        """Counted on the model itself, without its memory."""
        with torch.device("meta"):
            model = CSM(config)
            if lora.rank:
                apply_lora(model, lora)
        freeze(model, frozen)
        total: dict[str, int] = {}
        trained: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            part = name.split(".")[0]
            total[part] = total.get(part, 0) + parameter.numel()
            trained[part] = trained.get(part, 0) + parameter.numel() * parameter.requires_grad
        return Parameters(total, trained, sum(p.numel() for p in model.backbone.layers[0].parameters()))

    def on_each_of(self, ranks: int, config: CSMConfig) -> Parameters:
        """Those of each of `ranks` tensor-parallel ranks, before FSDP: slices of the backbone's matrices, and
        all the rest (csm/parallel/plan.py)."""
        layers, matrices = config.backbone.layers, linear_parameters(config.backbone)
        others = matrices - matrices // ranks
        return replace(
            self,
            total=self.total | {"backbone": self.total["backbone"] - others},
            trained=self.trained | {"backbone": self.trained["backbone"] - others},
            block=self.block - others // layers,
        )

    @property
    def count(self) -> int:
        return sum(self.total.values())

    @property
    def trained_count(self) -> int:
        return sum(self.trained.values())

    @property
    def linear(self) -> int:
        """Of what autocast makes copies: everything but the embeddings (norms are too small to matter)."""
        return self.count - self.total["text_embeddings"] - self.total["audio_embeddings"]


@dataclass(frozen=True)
class Buffers:
    """Bytes of gathered weights and of gradients on their way, in the three parts of a backward pass."""

    decoder: float = 0.0
    backbone: float = 0.0
    embeddings: float = 0.0


@dataclass(frozen=True)
class State:
    """Bytes that do not depend on the batch, on one device."""

    weights: float
    casts: float  # bf16 copies of weights that autocast keeps from forward to backward pass
    optimizer: float
    gradient_share: float  # bytes of gradient that a step's last pass leaves on this device per trained element
    unsummed_share: float  # the same of a pass whose gradients are not summed over ranks yet: a chunk's but the last
    first_gradients: float  # that exist before the last microbatch of a step begins
    buffers: Buffers
    host: float  # bytes of host memory for this device's share


def training_state(
    strategy: StrategyConfig, parameters: Parameters, devices: int, precision: Precision, accumulates: bool
) -> State:
    """Weights, Adam moments and buffers of one of `devices`; fp32 master weights throughout.

    parameters, devices: under tensor parallelism those of one of its ranks, and the data-parallel ones
    accumulates: a step has more than one microbatch
    """
    total, trained, name = parameters.count, parameters.trained_count, strategy.name
    if name in (StrategyName.single, StrategyName.ddp):
        casts = 2 * parameters.linear if precision is Precision.autocast else 0
        # DDP's gradients are views of its buckets, which are never freed.
        first = 4.0 * trained if accumulates or name is StrategyName.ddp else 0.0
        return State(4 * total, casts, 8 * trained, 4, 4, first, Buffers(), 0)
    if name is StrategyName.fsdp:
        buffers = _fsdp_buffers(parameters, precision)
        share = 0.0 if strategy.cpu_offload else 4 / devices
        unsummed = share if strategy.reduce_every_microbatch else 4  # whole, in fp32, until the step's last pass
        first = unsummed * trained if accumulates else 0.0
        if strategy.cpu_offload:  # weights, gradients and moments live on the host
            host = (4 * total + 12 * trained) / devices
            return State(0, 0, 0, share, unsummed, first, buffers, host)
        return State(4 * total / devices, 0, 8 * trained / devices, share, unsummed, first, buffers, 0)
    return _deepspeed_state(strategy, total, trained, devices, precision, accumulates)


def _fsdp_buffers(parameters: Parameters, precision: Precision) -> Buffers:
    """By the units of csm/parallel/plan.py. The root (audio embeddings, projection, heads) stays gathered; so does
    the decoder until its backward pass is over; of the backbone, the block in use and the next. A unit's gradient
    exists in the type of computation and, to be summed, in fp32."""
    element = 4 if precision is Precision.fp32 else 2
    gradient = element + 4
    decoder, text, block = parameters.total["decoder"], parameters.total["text_embeddings"], parameters.block
    root = parameters.count - decoder - text - parameters.total["backbone"]
    heads = root - parameters.total["audio_embeddings"]
    of_text = element * (root + text + heads) + gradient * text
    return Buffers(
        decoder=element * (root + decoder + heads) + gradient * decoder,
        backbone=element * (root + heads + 2 * block) + gradient * block,
        embeddings=max(of_text, element * root + gradient * root),
    )


def _deepspeed_state(
    strategy: StrategyConfig, total: int, trained: int, devices: int, precision: Precision, accumulates: bool
) -> State:
    """Weights in the type of computation, and an fp32 copy that belongs to the optimizer."""
    element = 4 if precision is Precision.fp32 else 2
    buckets, weights = 2 * min(DEEPSPEED_BUCKET, trained) * element, float(element * total)
    third = strategy.name is StrategyName.deepspeed_zero3
    if third:
        buckets += min(DEEPSPEED_LIVE, total) * element
        weights /= devices
    buffers = Buffers(buckets, buckets, buckets)
    if strategy.cpu_offload:  # fp32 weights, moments and gradients on the host; under ZeRO-3 the bf16 weights too
        host = 16 * trained / devices + (weights if third else 0)
        return State(0 if third else weights, 0, 0, 0, 0, 0, buffers, host)
    # Every pass leaves a partition of the summed gradients in fp32, for sums over passes and the optimizer; ZeRO 3
    # another one in the type of computation.
    share = (4 + element if third else 4) / devices
    first = share * trained if accumulates else 0
    return State(weights, 0, 12 * trained / devices, share, share, first, buffers, 0)
