"""How a model is spread over ranks: `parallelize`, in the order tensor parallelism, activation checkpointing,
compilation, sharding. Names of parameters stay those of csm/model/csm.py throughout.

The mesh has two dimensions, "data_parallel" x "tensor_parallel". Ranks of one tensor-parallel group hold slices of the
same backbone matrices and compute the same rows; what differs between data-parallel ranks is the rows. FSDP2 splits
parameters, gradients and optimizer state over the data-parallel dimension and averages gradients over it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from csm.config import ActivationCheckpointing, LoraConfig, StrategyName, TrainConfig
from csm.model.csm import CSM
from csm.model.lora import apply_lora
from csm.model.transformer import Transformer


def parallelize(
    model: CSM,
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
    for block in [*model.backbone.layers, *model.decoder.layers]:
        block.activation_checkpointing = activation_checkpointing
        if compile_blocks:
            # Shapes are static, but differ between the stacks, whose blocks run the same code: not a dynamic dimension.
            block.compile(fullgraph=True, dynamic=False)
    if mesh is not None:
        _shard(model, mesh["data_parallel"], bf16, cpu_offload)


def check_tensor_parallel(config: TrainConfig, devices: int) -> None:
    """Raises ValueError if `devices` cannot form groups of `strategy.tensor_parallel_size` ranks that share the
    backbone's matrices."""
    name, size, backbone = config.strategy.name, config.strategy.tensor_parallel_size, config.model.backbone
    if name is not StrategyName.fsdp and size != 1:
        raise ValueError(f"strategy.tensor_parallel_size belongs to strategy=fsdp, not to strategy={name.value}")
    if size < 1 or devices % size:
        raise ValueError(f"strategy.tensor_parallel_size={size} does not divide the number of devices, {devices}")
    for dimension in ("heads", "kv_heads", "ffn_dim"):
        value = getattr(backbone, dimension)
        if value % size:
            raise ValueError(f"strategy.tensor_parallel_size={size} does not divide model.backbone.{dimension}={value}")
    if size > 1 and config.lora.rank:
        raise ValueError("LoRA adapters are not split: use strategy.tensor_parallel_size=1 with lora.rank > 0")


def _split_matrices(stack: Transformer, mesh: DeviceMesh) -> None:
    """Megatron's plan (Shoeybi et al. 2019, arXiv:1909.08053): heads and hidden units are dealt out, so that attention
    and feed-forward each need a single sum over ranks, after their last matrix. Norms are computed by all."""
    for block in stack.layers:
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


def _shard(model: CSM, mesh: DeviceMesh, bf16: bool, cpu_offload: bool) -> None:
    """FSDP2. A unit is gathered when its forward (or backward) begins and freed after it: each block of the backbone,
    and the text embeddings. The depth decoder (together a few such blocks), which ends the forward and begins the
    backward pass, is freed only after the latter. The rest belongs to the model itself and stays gathered through the
    pass: audio embeddings, which both stacks read, and the heads.

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
    options = {"mesh": mesh, "mp_policy": precision, "offload_policy": offload}
    for unit in [*model.backbone.layers, model.text_embeddings]:
        fully_shard(unit, **options)
    fully_shard(model.decoder, **options, reshard_after_forward=False)
    fully_shard(model, **options)


def reshard(model: CSM) -> None:
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


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """2-norm [] over all gradients, the same on all ranks whether or not they hold only a part of them."""
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part]) for part in _by_mesh(parameters)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole))


def scale_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Brings gradients of that norm down to `limit`, if they exceed it."""
    for part in _by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(part, limit, norm)


def _by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters with gradients, in groups on one mesh each: torch's operations on lists of tensors want that."""
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(groups.values())
