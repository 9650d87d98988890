"""`parallelize`: tensor parallelism, then activation checkpointing, then compilation, then FSDP. Names of parameters
stay those of csm/model/csm.py throughout.

The mesh has two dimensions, "data_parallel" x "tensor_parallel". Ranks of one tensor-parallel group hold slices of the
same backbone matrices and compute the same rows; what differs between data-parallel ranks is the rows. FSDP2 splits
parameters, gradients and optimizer state over the data-parallel dimension and averages gradients over it.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from csm.config import ActivationCheckpointing, LoraConfig, StrategyName, TrainConfig, TrainerConfig
from csm.data.packing import RowBatch
from csm.kernels.cuda import flex_limit
from csm.model.csm import CSM
from csm.model.lora import apply_lora
from csm.model.speech_lm import SpeechLM
from csm.model.transformer import AttentionMask, Transformer

DEEPSPEED = (StrategyName.deepspeed_zero2, StrategyName.deepspeed_zero3)
SHARDING = (StrategyName.fsdp, *DEEPSPEED)
"""Strategies that keep fp32 master weights of their own, so that Fabric's autocast stays off."""
Precision = Literal["bf16-mixed", "32-true"]
PRECISIONS: tuple[Precision, ...] = ("bf16-mixed", "32-true")
"""The precisions that the optimizer step is written for: no scaling of losses, as fp16 needs it, and fp32 weights."""


def precision(options: TrainerConfig) -> Precision:
    """One of PRECISIONS, see TrainerConfig. Raises ValueError for any other."""
    for known in PRECISIONS:
        if options.precision == known:
            return known
    if options.precision != "auto":
        raise ValueError(f"trainer.precision={options.precision} is unknown; choose {', '.join(PRECISIONS)} or auto")
    on_gpu = options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def attention_mask(rows: RowBatch, config: TrainConfig) -> AttentionMask:
    """For flex attention on CUDA, unless the GPU or the width of the heads rules it out; elsewhere a dense mask."""
    backbone, options = config.model.backbone, config.trainer
    # Selective checkpointing looks at every operation, and flex attention would not be compiled under it (torch 2.9).
    watched = options.activation_checkpointing is ActivationCheckpointing.selective and not options.compile
    if not rows.tokens.is_cuda or watched:
        return rows.attention_mask()
    limit = flex_limit(backbone.dim // backbone.heads, precision(options) == "bf16-mixed")
    return rows.block_mask() if limit is None else rows.attention_mask()


def parallelize(
    model: SpeechLM,
    mesh: DeviceMesh | None,
    activation_checkpointing: ActivationCheckpointing,
    compile_blocks: bool,
    bf16: bool,
    cpu_offload: bool,
) -> None:
    """Prepares a model, best on the meta device, for training; in place.

    mesh: None leaves the parameters whole (one process, or a strategy that deals with them itself).
    bf16, cpu_offload: of the sharded parameters, see `_shard`.
    """
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        _split_matrices(model.backbone, mesh["tensor_parallel"])
    if compile_blocks:
        # Blocks are small units already: Dynamo need not cut them where DDP's buckets end, which would keep norms from
        # fusing with casts. And their code, the same in both stacks, training and validation, may have many shapes.
        torch._dynamo.config.optimize_ddp = False
        torch._dynamo.config.recompile_limit = 32
    for block in [block for stack in model.stacks() for block in stack.blocks()]:
        block.activation_checkpointing = activation_checkpointing
        if compile_blocks:
            # Shapes are static, but differ between the stacks, whose blocks run the same code: not a dynamic dimension.
            block.compile(fullgraph=True, dynamic=False)
    if mesh is not None:
        _shard(model, mesh["data_parallel"], bf16, cpu_offload)


def _split_matrices(stack: Transformer, mesh: DeviceMesh) -> None:
    """Megatron's plan (Shoeybi et al. 2019, arXiv:1909.08053): heads and hidden units are split over ranks, so that
    attention and feed-forward each need a single all-reduce, after their last matrix. Norms are replicated."""
    for block in stack.blocks():
        plan = {
            "attn.q_proj": ColwiseParallel(),
            "attn.k_proj": ColwiseParallel(),
            "attn.v_proj": ColwiseParallel(),
            "attn.o_proj": RowwiseParallel(),
            "mlp.gate_proj": ColwiseParallel(),
            "mlp.up_proj": ColwiseParallel(),
            "mlp.down_proj": RowwiseParallel(),
        }
        parallelize_module(block, mesh, plan)
        block.attn.heads //= mesh.size()  # of this rank
        block.attn.kv_heads //= mesh.size()


def _shard(model: SpeechLM, mesh: DeviceMesh, bf16: bool, cpu_offload: bool) -> None:
    """FSDP2. A unit is gathered when its forward (or backward) begins and freed after it: each block of the backbone,
    and the text embeddings. The depth decoder (together a few such blocks), which ends the forward and begins the
    backward pass, is freed only after the last backward pass of a step. So is the rest, which belongs to the model
    itself: audio embeddings, which both stacks read, and the heads.

    bf16: gathered weights, and so the computation, are bfloat16; the shards that the optimizer works on stay fp32, and
    gradients are summed in fp32. Inputs are not cast: rotary angles and slot weights must stay fp32, and activations
    already have the type of the embeddings.
    """
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    shard = partial(fully_shard, mesh=mesh, mp_policy=precision, offload_policy=offload)
    for unit in [*model.backbone.layers, model.text_embeddings]:
        shard(unit)
    if isinstance(model, CSM):
        shard(model.decoder, reshard_after_forward=False)
    shard(model)


def reshard(model: SpeechLM) -> None:
    """Frees what a forward pass without a backward pass (validation) left gathered: afterwards parameters are the
    shards that the optimizer knows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole_model(model: CSM, lora: LoraConfig, device: torch.device, dtype: torch.dtype) -> CSM:
    """The model as one process can use it: itself, unless its weights are spread over ranks. Then all ranks must call
    this, and get a copy in `dtype`, on `device` on rank 0 and without values (meta) elsewhere."""
    reshard(model)
    parameters = dict(model.named_parameters())
    if not any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters.values()):
        return model
    with torch.device("meta"):
        copy = CSM(model.config)
    if lora.rank:
        apply_lora(copy, lora)
    for name, parameter in parameters.items():
        whole = _gathered(parameter)
        if dist.get_rank() == 0:
            copy.load_state_dict({name: whole.to(device, dtype)}, strict=False, assign=True)
    return copy.eval()


def _gathered(parameter: nn.Parameter) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    import deepspeed  # its ZeRO 3 then holds the weights

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()
