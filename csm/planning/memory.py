"""Peak memory of one device during a training step, from the moments at which the most is alive.

The order is that of `backward_in_chunks` (csm/model/backward.py):

    backbone, loss of codebook 0: forward
    depth decoder, for each chunk of frames: forward, and backward but for the last
    backward: last chunk of the depth decoder, loss of codebook 0, backbone, embeddings
    optimizer step

The backbone's activations exist until the last backward pass, which needs them. Of the depth decoder there are the
activations of one chunk, its inputs for all chunks, and the gradients of the inputs of all chunks so far.

Each moment is the sum of weights, optimizer state, communication buffers, the gradients that exist by then, the
activations not yet used up, logits and their gradients, and the gradients in flight inside a block. The largest sum is
the peak. Gradients are freed between steps, so the forward pass of the first microbatch has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from csm.config import ActivationCheckpointing, CSMConfig, LoraConfig, StrategyConfig, StrategyName
from csm.model.csm import CSM
from csm.model.flops import linear_parameters
from csm.model.freeze import freeze
from csm.model.lora import apply_lora
from csm.planning.activations import (
    LOG_PROBABILITIES,
    Blocks,
    Precision,
    backbone_bytes,
    block_transient_bytes,
    decoder_bytes,
    decoder_input_bytes,
    logits_bytes,
)

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


@dataclass(frozen=True)
class Microbatch:
    """Sizes of one forward and backward pass on one device."""

    rows: int
    length: int  # positions of a row, empty ones included
    frames: int  # slots of the depth decoder
    chunk: int  # at most so many of them in one pass of the depth decoder

    @property
    def positions(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at one moment."""

    moment: str
    weights: float
    casts: float
    gradients: float
    optimizer: float
    backbone_activations: float
    decoder_activations: float
    logits: float
    block_gradients: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}


def _casts(parameters: Parameters, state: State, blocks: Blocks, level: ActivationCheckpointing) -> Buffers:
    """bf16 copies of weights in the three parts of a backward pass. Autocast keeps those of modules to the pass's end.
    Compiled blocks keep their own until they are differentiated, or make them again with what they recompute."""
    if blocks is not Blocks.compiled or not state.casts:
        return Buffers(state.casts, state.casts, state.casts)
    decoder, backbone = parameters.total["decoder"], parameters.total["backbone"]
    others = state.casts - 2 * (decoder + backbone)
    if level is ActivationCheckpointing.none:
        return Buffers(state.casts, others + 2 * backbone, others)
    return Buffers(others + 2 * parameters.block, others + 2 * parameters.block, others)


def peak_memory(
    config: CSMConfig,
    parameters: Parameters,
    state: State,
    microbatch: Microbatch,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing,
    blocks: Blocks = Blocks.fused,
    ranks: int = 1,
) -> Memory:
    """The moment of an optimizer step at which the most memory is in use.

    parameters, state: of one of the `ranks` that share the backbone's matrices (tensor parallelism)
    """
    vocab, codebooks, positions = config.audio_vocab_size, config.num_codebooks, microbatch.positions
    chunk = min(microbatch.chunk, microbatch.frames)
    chunks = -(-microbatch.frames // chunk)
    frames = chunks * chunk  # the last chunk is filled up
    input_bytes = decoder_input_bytes(config, precision)
    copied = microbatch.frames if frames > microbatch.frames else 0  # filling up makes a copy
    inputs = (copied + frames) * input_bytes
    collected = (frames - chunk) * input_bytes  # gradients of the earlier chunks' inputs
    backbone = positions * backbone_bytes(config, microbatch.length, precision, activation_checkpointing, blocks, ranks)
    decoder = chunk * decoder_bytes(config, precision, activation_checkpointing, blocks)
    c0_logits, decoder_logits = vocab * positions, (codebooks - 1) * vocab * chunk
    softmax = logits_bytes(precision)
    c0_kept = LOG_PROBABILITIES * c0_logits
    level = activation_checkpointing
    decoder_blocks = chunk * codebooks * block_transient_bytes(config.decoder, precision, level, blocks)
    backbone_blocks = positions * block_transient_bytes(config.backbone, precision, level, blocks, ranks)
    element = 4 if precision is Precision.fp32 else 2

    trained = parameters.trained
    of_decoder = trained["audio_head"] + trained["decoder"] + trained["projection"]
    first = state.first_gradients
    earlier = max(first, state.unsummed_share * of_decoder) if chunks > 1 else first
    # A pass has the head's gradient as a tensor of its own, until it is added to the one that exists.
    new_head = 4 * trained["audio_head"]
    with_head = earlier + (0 if earlier else new_head)
    with_decoder = max(earlier, state.gradient_share * of_decoder)
    every = state.gradient_share * parameters.trained_count
    # Further gradients of the table until they are added up: fused CPU kernels make one in a pass, autograd one for
    # each of two lookups. Sharded strategies have the table's gradient among their buffers.
    tables = (precision is not Precision.fp32) + (first > 0 and state.buffers == Buffers())
    table = tables * trained["audio_embeddings"] * (2 if precision is Precision.bf16 else 4)

    casts = _casts(parameters, state, blocks if ranks == 1 else Blocks.plain, level)

    def moment(
        name: str,
        gradients: float,
        backbone: float = 0.0,
        decoder: float = 0.0,
        logits: float = 0.0,
        block_gradients: float = 0.0,
        buffers: float = 0.0,
        casts: float = 0.0,
    ) -> Memory:
        return Memory(
            moment=name,
            weights=state.weights,
            casts=casts,
            gradients=gradients,
            optimizer=state.optimizer,
            backbone_activations=backbone,
            decoder_activations=decoder,
            logits=logits,
            block_gradients=block_gradients,
            buffers=buffers,
        )

    last_chunk = decoder + inputs + collected
    # The gradients of all chunks' inputs are joined in one tensor for the backbone and the embeddings.
    joined = inputs + collected + frames * input_bytes
    buffers = state.buffers
    return max(
        (
            moment(
                "decoder's loss, backward",
                gradients=earlier,
                backbone=backbone,
                decoder=last_chunk,
                logits=c0_kept + softmax * decoder_logits,
                buffers=buffers.decoder,
                casts=casts.decoder,
            ),
            moment(
                "decoder's head, backward",
                gradients=earlier + new_head,
                backbone=backbone,
                decoder=last_chunk,
                logits=c0_kept + element * decoder_logits,
                block_gradients=element * chunk * codebooks * config.decoder.dim,
                buffers=buffers.decoder,
                casts=casts.decoder,
            ),
            moment(
                "decoder's blocks, backward",
                gradients=with_head,
                backbone=backbone,
                decoder=last_chunk,
                logits=c0_kept,
                block_gradients=decoder_blocks,
                buffers=buffers.decoder,
                casts=casts.decoder,
            ),
            moment(
                "codebook 0's loss, backward",
                gradients=with_decoder,
                backbone=backbone,
                decoder=joined,
                logits=softmax * c0_logits,
                buffers=buffers.backbone,
                casts=casts.backbone,
            ),
            moment(
                "backbone's blocks, backward",
                gradients=with_decoder,
                backbone=backbone,
                decoder=joined,
                block_gradients=backbone_blocks,
                buffers=buffers.backbone,
                casts=casts.backbone,
            ),
            moment(
                "embeddings, backward",
                gradients=max(first, every) + table,
                decoder=joined,
                block_gradients=3 * 4 * positions * config.backbone.dim,
                buffers=buffers.embeddings,
                casts=casts.embeddings,
            ),
            moment("optimizer step", gradients=every),
        ),
        key=lambda memory: memory.total,
    )
