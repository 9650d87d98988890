"""Tensors that a training step keeps for its backward pass, and how many bytes they take.

The lists of plain and fused modules follow csm/model/transformer.py and csm/model/csm.py line by line; a test counts
what autograd really saves. Whoever changes the model changes a line here. What blocks compiled for a GPU keep is the
compiler's choice, recorded with torch 2.9.1 on a device that computes nothing (docs/benchmarks.md).

Three columns of bytes per element: fp32 (kernels of a CPU), bf16 autocast and bf16 weights (those of a GPU). Under
autocast the residual stream and the norms stay in fp32 and every linear layer keeps a bf16 copy of its input, one for
each layer that reads it. With bf16 weights everything is bf16 but for the copy that a norm computes with.

"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from csm.config import ActivationCheckpointing, CSMConfig, TransformerConfig


class Precision(Enum):
    fp32 = "fp32"
    autocast = "bf16 autocast"  # over fp32 weights: strategies that keep weights whole
    bf16 = "bf16"  # weights gathered as bf16 from fp32 shards: fsdp, deepspeed


class Blocks(Enum):
    """How blocks are computed, which decides what they keep."""

    plain = "modules one by one, as with adapters"
    fused = "modules of csm/kernels/cpu.py, which recompute the product inside SwiGLU"
    compiled = "compiled for a GPU, which keeps a single copy of what several layers read"


NONE, SELECTIVE, FULL = ActivationCheckpointing
ALWAYS = (NONE, SELECTIVE, FULL)


@dataclass(frozen=True)
class Saved:
    """A tensor kept by one block, for every position of a sequence of `length` positions."""

    what: str
    elements: Callable[[TransformerConfig, int], int]  # (stack, length) -> per position
    fp32: int  # bytes per element
    autocast: int
    bf16: int
    kept_by: tuple[ActivationCheckpointing, ...] = (NONE,)
    split: bool = False  # over tensor-parallel ranks; the others exist on each of them
    only_plain: bool = False  # kept by plain modules only


def _width(stack: TransformerConfig, length: int) -> int:
    return stack.dim


def _ffn(stack: TransformerConfig, length: int) -> int:
    return stack.ffn_dim


def _kv(stack: TransformerConfig, length: int) -> int:
    return stack.kv_heads * (stack.dim // stack.heads)


def _one(stack: TransformerConfig, length: int) -> int:
    return 1


BLOCK = (
    Saved("input of the block, read by attn_norm", _width, 4, 4, 4),
    Saved("input of the block, to compute it again", _width, 4, 4, 2, (SELECTIVE, FULL)),
    Saved("attn_norm: 1 / root mean square", _one, 4, 4, 4),
    Saved("input of q_proj, k_proj, v_proj", _width, 4, 3 * 2, 2),
    Saved("queries", _width, 4, 2, 2, (NONE, SELECTIVE), split=True),
    Saved("keys", _kv, 4, 2, 2, (NONE, SELECTIVE), split=True),
    Saved("values", _kv, 4, 2, 2, (NONE, SELECTIVE), split=True),
    Saved("attention: log-sum-exp of every head", lambda stack, _: stack.heads, 4, 4, 4, (NONE, SELECTIVE), split=True),
    Saved("attention: result, which o_proj reads in place", _width, 4, 2, 2, (NONE, SELECTIVE), split=True),
    Saved("result of o_proj", _width, 4, 2, 2, (SELECTIVE,)),
    Saved("input of the MLP, read by mlp_norm", _width, 4, 4, 4),
    Saved("mlp_norm: 1 / root mean square", _one, 4, 4, 4),
    Saved("input of gate_proj and up_proj", _width, 4, 2 * 2, 2),
    Saved("result of gate_proj", _ffn, 4, 2, 2, (NONE, SELECTIVE), split=True),
    Saved("silu of it", _ffn, 4, 2, 2, split=True, only_plain=True),
    Saved("result of up_proj", _ffn, 4, 2, 2, (NONE, SELECTIVE), split=True),
    Saved("their product, input of down_proj", _ffn, 4, 2, 2, split=True, only_plain=True),
    Saved("result of down_proj", _width, 4, 2, 2, (SELECTIVE,)),
)

COMPILED_BLOCK = (
    Saved("input of the block", _width, 4, 4, 2, ALWAYS),
    Saved("attn_norm and mlp_norm: 1 / root mean square", lambda stack, _: 2, 4, 4, 4),
    Saved("input of q_proj, k_proj, v_proj", _width, 4, 2, 2),
    Saved("queries", _width, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("keys", _kv, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("values", _kv, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("attention: log-sum-exp of every head", lambda stack, _: stack.heads, 4, 4, 4, (NONE, SELECTIVE)),
    Saved("attention: result of every head", _width, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("the same with heads side by side, input of o_proj", _width, 4, 2, 2),
    Saved("result of o_proj, to compute the input of the MLP again", _width, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("input of gate_proj and up_proj", _width, 4, 2, 2),
    Saved("result of gate_proj", _ffn, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("result of up_proj", _ffn, 4, 2, 2, (NONE, SELECTIVE)),
    Saved("product inside SwiGLU, input of down_proj", _ffn, 4, 2, 2),
)

# Only where attention reads a dense mask (the backbone): every block turns it into numbers of its own. Flex attention's
# block mask takes next to nothing.
MASKED_BLOCK = (Saved("attention: the mask, added to the logits", lambda _, length: length, 4, 0, 0),)

FINAL_NORM = (
    Saved("its input", _width, 4, 4, 4),
    Saved("1 / root mean square", _one, 4, 4, 4),
)

LOG_PROBABILITIES = 4
"""Bytes per logit that a cross entropy keeps for its backward pass: fp32, and no copy of the logits."""

HEAD_INPUT = {Precision.fp32: 4, Precision.autocast: 4 + 2, Precision.bf16: 2}  # bytes per element of the final states


def saved_bytes(
    tensors: tuple[Saved, ...],
    stack: TransformerConfig,
    length: int,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing = NONE,
    plain: bool = False,
    ranks: int = 1,
) -> int:
    """Bytes per position of a list of tensors, on each of `ranks` tensor-parallel ranks.

    plain: with what only plain modules keep
    """
    return sum(
        tensor.elements(stack, length) // (ranks if tensor.split else 1) * getattr(tensor, precision.name)
        for tensor in tensors
        if activation_checkpointing in tensor.kept_by and (plain or not tensor.only_plain)
    )


def stack_bytes(
    stack: TransformerConfig,
    length: int,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing,
    masked: bool,
    blocks: Blocks = Blocks.fused,
    ranks: int = 1,
) -> float:
    """Bytes per position that a transformer stack keeps over sequences of `length` positions, final norm included, on
    each of `ranks` tensor-parallel ranks. Matrices that are split over ranks are called as plain modules in any case.

    While a block is recomputed, all that it would keep without `activation_checkpointing` is there as well.
    """
    block: tuple[Saved, ...] = BLOCK + MASKED_BLOCK if masked else BLOCK
    if blocks is Blocks.compiled and ranks == 1:
        block = COMPILED_BLOCK  # flex attention, or no mask at all
    plain = blocks is Blocks.plain or ranks > 1
    kept = saved_bytes(block, stack, length, precision, activation_checkpointing, plain, ranks)
    total = stack.layers * kept
    if activation_checkpointing is not NONE:
        total += saved_bytes(block, stack, length, precision, plain=plain, ranks=ranks) - kept
    return total + saved_bytes(FINAL_NORM, stack, length, precision)


def backbone_bytes(
    config: CSMConfig,
    length: int,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing,
    blocks: Blocks = Blocks.fused,
    ranks: int = 1,
) -> float:
    """Bytes per position of a row that the backbone, its embeddings and the head of codebook 0 keep, on each of `ranks`
    tensor-parallel ranks."""
    embedding = (8 + 4) * config.num_codebooks  # row of the table (int64) and mask (fp32) of every code
    head_input = config.backbone.dim * HEAD_INPUT[precision]
    rope = 4 * config.backbone.dim // config.backbone.heads  # cosines and sines, shared by the blocks
    stack = stack_bytes(
        config.backbone, length, precision, activation_checkpointing, masked=True, blocks=blocks, ranks=ranks
    )
    return stack + embedding + rope + head_input


def decoder_bytes(
    config: CSMConfig,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing,
    blocks: Blocks = Blocks.fused,
) -> float:
    """Bytes per frame that the depth decoder keeps of one pass, beyond its inputs (`decoder_input_bytes`)."""
    codebooks = config.num_codebooks
    stack = stack_bytes(config.decoder, codebooks, precision, activation_checkpointing, masked=False, blocks=blocks)
    heads_input = config.decoder.dim * HEAD_INPUT[precision]
    copies = 2 * config.backbone.dim if precision is Precision.autocast else 0  # of the inputs, for `projection`
    return codebooks * (stack + heads_input + copies)


def decoder_input_bytes(config: CSMConfig, precision: Precision) -> float:
    """Bytes per frame of what the depth decoder reads: a backbone state and K-1 embeddings."""
    return (2 if precision is Precision.bf16 else 4) * config.num_codebooks * config.backbone.dim


def block_transient_bytes(
    stack: TransformerConfig,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing = NONE,
    blocks: Blocks = Blocks.fused,
    ranks: int = 1,
) -> float:
    """Bytes per position that come and go while a block is differentiated: the gradients of the residual stream, and of
    gate, silu and up, less the product, which is gone by then. Compiled blocks put gradients in the place of what they
    have used up; where they recompute, as recorded, one or two more of the MLP's width are there at once."""
    element = 4 if precision is Precision.fp32 else 2
    of_mlp = stack.ffn_dim // ranks * element
    if blocks is not Blocks.compiled or ranks > 1:
        return 2 * of_mlp + stack.dim * 4
    return {NONE: of_mlp, SELECTIVE: 2 * of_mlp + stack.dim * 4, FULL: 3 * of_mlp}[activation_checkpointing]


def logits_bytes(precision: Precision) -> int:
    """Bytes per logit while a cross entropy is differentiated: log-probabilities, their gradient and the logits'
    gradient, all fp32, and with bf16 the latter's copy in bf16."""
    return LOG_PROBABILITIES + 2 * 4 + (0 if precision is Precision.fp32 else 2)
