"""Peak memory of one device during a training step, from the moments at which the most is alive.

    forward: backbone, codebook 0 head, depth decoder  ->  backward in the opposite order  ->  optimizer step

Where the depth decoder runs in chunks (csm/model/depth.py), each chunk's backward pass is part of its forward pass.

For each moment: what is there throughout (weights, optimizer state, communication buffers), the gradients that exist by
then, the activations not yet used up, logits and their gradients, and the gradients under way inside a block. The
largest sum is the peak. Gradients are freed between steps, so the forward pass of the first microbatch has none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import nn

from csm.config import CSMConfig, LoraConfig, PlanStrategy, Recompute
from csm.model.csm import CSM
from csm.model.lora import apply_lora
from csm.planning.activations import (
    Precision,
    backbone_bytes,
    block_transient_bytes,
    decoder_bytes,
    decoder_input_bytes,
    logits_bytes,
)

DEEPSPEED_BUCKET = 200_000_000  # elements; Lightning's reduce_bucket_size, two of them in flight
DEEPSPEED_LIVE = 1_000_000_000  # elements; Lightning's stage3_max_live_parameters


@dataclass(frozen=True)
class Parameters:
    """Elements of a model's parameters, by part: those that are there and those that are trained."""

    total: dict[str, int]
    trained: dict[str, int]
    largest_block: int

    @staticmethod
    def of(config: CSMConfig, lora: LoraConfig) -> Parameters:
        """Counted on the model itself, without its memory."""
        with torch.device("meta"):
            model = CSM(config)
            if lora.rank:
                apply_lora(model, lora)
        total: dict[str, int] = {}
        trained: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            part = name.split(".")[0]
            total[part] = total.get(part, 0) + parameter.numel()
            trained[part] = trained.get(part, 0) + parameter.numel() * parameter.requires_grad
        blocks: list[nn.Module] = [*model.backbone.layers, *model.decoder.layers]
        return Parameters(total, trained, max(sum(p.numel() for p in block.parameters()) for block in blocks))

    @property
    def count(self) -> int:
        return sum(self.total.values())

    @property
    def trained_count(self) -> int:
        return sum(self.trained.values())

    @property
    def root(self) -> int:
        """Outside of the transformer stacks: embeddings, projection, heads. One unit for FSDP."""
        return self.count - self.total["backbone"] - self.total["decoder"]

    @property
    def linear(self) -> int:
        """Of what autocast makes copies: everything but the embeddings (norms are too small to matter)."""
        return self.count - self.total["text_embeddings"] - self.total["audio_embeddings"]


@dataclass(frozen=True)
class State:
    """Bytes that do not depend on the batch, on one device."""

    weights: float
    casts: float  # bf16 copies of weights that autocast keeps from forward to backward pass
    optimizer: float
    gradient_share: float  # bytes of gradient on this device per trained element
    buffers: float  # gathered weights, gradients on their way
    host: float  # bytes of host memory for this device's share


def training_state(strategy: PlanStrategy, parameters: Parameters, devices: int, precision: Precision) -> State:
    """Weights, Adam moments and buffers of one of `devices`; fp32 master weights throughout.

    FSDP gathers the root unit (embeddings, heads) and two blocks, one in use and the next, in the compute type, and
    reduces gradients in fp32. DeepSpeed holds bf16 weights beside an fp32 copy that belongs to the optimizer.
    """
    compute = 4 if precision is Precision.fp32 else 2
    total, trained = parameters.count, parameters.trained_count
    casts = 2 * parameters.linear if precision is Precision.bf16 else 0
    name = strategy.value
    offload = name.endswith("_offload")
    if strategy in (PlanStrategy.single, PlanStrategy.ddp):
        buckets = 4 * trained if strategy is PlanStrategy.ddp else 0  # DDP's gradients lie in buckets a second time
        return State(4 * total, casts, 8 * trained, 4, buckets, 0)
    if name.startswith("fsdp"):
        root, block = parameters.root, parameters.largest_block
        blocks_backward = compute * (root + 2 * block) + (compute + 4) * block
        root_backward = compute * root + (compute + 4) * root
        buffers = max(blocks_backward, root_backward)
        if offload:  # weights, gradients and moments live on the host
            return State(0, 0, 0, 0, buffers, (4 * total + 12 * trained) / devices)
        return State(4 * total / devices, 0, 8 * trained / devices, 4 / devices, buffers, 0)
    buckets = 2 * min(DEEPSPEED_BUCKET, trained) * compute
    weights = compute * total
    if name.startswith("deepspeed_zero3"):
        buckets += min(DEEPSPEED_LIVE, total) * compute
        weights /= devices
    if offload:  # fp32 weights, moments and gradients on the host; under ZeRO-3 the bf16 weights too
        host = 16 * trained / devices
        if strategy is PlanStrategy.deepspeed_zero3_offload:
            host, weights = host + weights, 0
        return State(weights, 0, 0, 0, buckets, host)
    # Gradients: the bf16 partition, and its fp32 copy for the optimizer.
    return State(weights, 0, 12 * trained / devices, (compute + 4) / devices, buckets, 0)


@dataclass(frozen=True)
class Microbatch:
    """What one forward and backward pass on one device holds."""

    rows: int
    length: int  # positions of a row, empty ones included
    frames: int  # slots of the depth decoder
    chunk: int | None  # frames of one pass of the depth decoder; None: all, differentiated with everything else

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


def peak_memory(
    config: CSMConfig,
    parameters: Parameters,
    state: State,
    microbatch: Microbatch,
    accumulates: bool,
    precision: Precision,
    recompute: Recompute,
) -> Memory:
    """The moment of an optimizer step at which the most memory is in use.

    accumulates: the step has more than one microbatch, so gradients are there from the second one's start.
    """
    vocab, codebooks, positions = config.audio_vocab_size, config.num_codebooks, microbatch.positions
    chunk = min(microbatch.chunk or microbatch.frames, microbatch.frames)
    chunks = -(-microbatch.frames // chunk)
    frames = chunks * chunk  # the last chunk is filled up
    backbone = positions * backbone_bytes(config, microbatch.length, precision, recompute)
    decoder = chunk * decoder_bytes(config, precision, recompute)
    inputs = frames * decoder_input_bytes(config)
    c0_logits, decoder_logits = vocab * positions, (codebooks - 1) * vocab * chunk
    softmax = logits_bytes(precision)
    decoder_blocks = chunk * codebooks * block_transient_bytes(config.decoder, precision)
    backbone_blocks = positions * block_transient_bytes(config.backbone, precision)

    def gradients(*parts: str) -> float:
        return state.gradient_share * sum(parameters.trained[part] for part in parts)

    every = gradients(*parameters.trained)
    earlier = every if accumulates else 0.0  # of the microbatches before
    of_decoder = gradients("audio_head", "decoder", "projection")
    # Sharded strategies have a whole gradient of the table among their buffers.
    table = 4 * parameters.trained["audio_embeddings"] if accumulates and state.gradient_share == 4 else 0
    if microbatch.chunk is None:
        inputs_and_gradients, found = inputs, gradients("audio_head")
    else:
        if frames > microbatch.frames:
            inputs += microbatch.frames * decoder_input_bytes(config)  # filled up in a copy
        inputs_and_gradients = inputs + frames * decoder_input_bytes(config)
        found = of_decoder if chunks > 1 else 0.0  # of earlier chunks; that of the present one is added at its end
    input_gradients = frames * decoder_input_bytes(config)
    c0_kept = 4 * c0_logits

    def moment(
        name: str,
        gradients: float,
        backbone: float = 0.0,
        decoder: float = 0.0,
        logits: float = 0.0,
        block_gradients: float = 0.0,
    ) -> Memory:
        return Memory(
            moment=name,
            weights=state.weights,
            casts=state.casts,
            gradients=gradients,
            optimizer=state.optimizer,
            backbone_activations=backbone,
            decoder_activations=decoder,
            logits=logits,
            block_gradients=block_gradients,
            buffers=state.buffers,
        )

    reading = decoder + inputs_and_gradients
    after_decoder = earlier + of_decoder
    return max(
        (
            moment("decoder's loss, backward", earlier + found, backbone, reading, c0_kept + softmax * decoder_logits),
            moment(
                "decoder's blocks, backward",
                earlier + found + (gradients("audio_head") if microbatch.chunk else 0),
                backbone,
                reading,
                c0_kept,
                decoder_blocks,
            ),
            moment("codebook 0's loss, backward", after_decoder, backbone, input_gradients, softmax * c0_logits),
            moment("backbone's blocks, backward", after_decoder, backbone, input_gradients, 0, backbone_blocks),
            moment(
                "embeddings, backward", every + table, 0, input_gradients, 0, 3 * positions * config.backbone.dim * 4
            ),
            moment("optimizer step", every),
        ),
        key=lambda memory: memory.total,
    )
