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

from dataclasses import dataclass, fields

from csm.config import ActivationCheckpointing, CSMConfig
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
from csm.planning.state import Buffers, Parameters, State


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
