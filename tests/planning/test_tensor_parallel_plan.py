"""`csm plan` with tensor parallelism: against two real processes, the same numbers by hand, and training's refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from csm.config import (
    ActivationCheckpointing,
    CSMConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    StrategyConfig,
    StrategyName,
    TransformerConfig,
)
from csm.kernels import cpu
from csm.model.csm import CSM
from csm.parallel.plan import parallelize
from csm.planning.activations import Precision, stack_bytes
from csm.planning.estimate import Plan, make_plan
from csm.planning.request import read_request
from csm.planning.state import Parameters, training_state
from csm.training.build import train
from csm.training.optim import build_optimizer
from tests.conftest import compose_train
from tests.planning.test_activations import SavedBytes
from tests.tiny import CODEBOOK_SIZE, TEXT_VOCAB, K, conversation, forward, rows
from tests.training.forked import server

LENGTH = 64
CONFIG = CSMConfig(  # every first dimension even: two ranks get equal shards
    backbone=TransformerConfig(layers=3, dim=48, heads=6, kv_heads=2, ffn_dim=72),
    decoder=TransformerConfig(layers=2, dim=32, heads=4, kv_heads=2, ffn_dim=56),
    text_vocab_size=TEXT_VOCAB + 1,
    codebook_size=CODEBOOK_SIZE,
    num_codebooks=K,
    max_seq_len=160,
)


def plan(*words: str) -> Plan:
    return make_plan(*read_request(list(words)))


def local(tensor: Tensor) -> Tensor:
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.wait() if isinstance(tensor, AsyncCollectiveTensor) else tensor


def held(tensors: list[Tensor]) -> int:
    """Bytes of this rank's parts; those of gradients lie together, by units of FSDP."""
    storages = [local(tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class SavedLocalBytes(SavedBytes):
    def _pack(self, tensor: Tensor) -> Tensor:
        super()._pack(local(tensor))
        return tensor


@contextmanager
def saved_in_backbone(model: CSM) -> Iterator[SavedLocalBytes]:
    saved = SavedLocalBytes()
    begin = model.backbone.register_forward_pre_hook(lambda *_: saved.__enter__() and None)
    end = model.backbone.register_forward_hook(lambda *_: saved.__exit__())
    yield saved
    begin.remove()
    end.remove()


def one_step(ranks: int) -> dict[str, int]:
    """Bytes that this rank holds in a training step of two processes, `ranks` of them tensor-parallel."""
    mesh = init_device_mesh("cpu", (2 // ranks, ranks), mesh_dim_names=("data_parallel", "tensor_parallel"))
    with torch.device("meta"):
        model = CSM(CONFIG)
    cpu.install(model)
    parallelize(model, mesh, ActivationCheckpointing.none, compile_blocks=False, bf16=False, cpu_offload=False)
    model.to_empty(device="cpu")
    model.init_weights()
    optimizer = build_optimizer(model, OptimConfig())
    batch = rows([[conversation(0)], [conversation(1)]], max_seq_len=LENGTH)
    with saved_in_backbone(model) as saved:
        sums = forward(model, batch)
    # Gathered weights of blocks have been freed by now; the final norm's belongs to the root, which stays gathered.
    activations = saved.total - held([model.backbone.norm.weight])
    sums.loss(LossConfig(), sums.frames).backward()
    optimizer.step()
    parameters = list(model.parameters())
    return {
        "activations": activations,
        "weights": held(parameters),
        "gradients": held([parameter.grad for parameter in parameters]),
        "optimizer": held([state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]),
    }


def measure(rank: int, store: Path, results: Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for ranks in (1, 2):
        results.put((ranks, one_step(ranks)))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_what_is_planned(tmp_path):
    """Sharded by FSDP, and sharing matrices: weights, gradients, Adam's moments, activations, to the byte."""
    context = server()
    results = context.Queue()
    processes = [context.Process(target=measure, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in processes:
        process.start()
    measured = [results.get(timeout=120) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    whole, width = Parameters.of(CONFIG, LoraConfig()), CONFIG.backbone.dim // CONFIG.backbone.heads
    for ranks, bytes_held in measured:
        own = whole.on_each_of(ranks, CONFIG)
        options = StrategyConfig(StrategyName.fsdp, tensor_parallel_size=ranks)
        state = training_state(options, own, 2 // ranks, Precision.fp32, accumulates=False)
        stack = stack_bytes(
            CONFIG.backbone, LENGTH, Precision.fp32, ActivationCheckpointing.none, masked=True, ranks=ranks
        )
        assert bytes_held == {
            "activations": (stack + 4 * width) * 2 * LENGTH,  # rotary positions beside the stack
            "weights": state.weights,
            "gradients": state.gradient_share * own.trained_count,
            "optimizer": state.optimizer,
        }, f"tensor_parallel_size={ranks}"


def test_hand_computed_numbers_of_csm_8b():
    """4 of 64 devices share the backbone: 6.98B of its 8.19B parameters are linear layers."""
    words = ["model=csm_8b", "gpus=64", "strategy=fsdp", "data.micro_batch_size=2", "data.global_batch_size=64"]
    whole, shared = plan(*words, "data.global_batch_size=128"), plan(*words, "strategy.tensor_parallel_size=4")
    matrices = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert (shared.data_ranks, shared.microbatches, shared.global_batch_size) == (16, 2, 64) and not shared.notes
    peak = shared.memory["none"].peak
    assert peak.weights == 4 * (shared.parameters - matrices * 3 / 4) / 16 and peak.optimizer == 2 * peak.weights
    assert peak.gradients >= 4 * (shared.parameters - matrices * 3 / 4), "whole ones of the first microbatch"
    accumulating = plan(*words, "data.global_batch_size=256").memory["none"].peak
    assert peak.decoder_activations == accumulating.decoder_activations, "not shared"
    assert peak.logits == accumulating.logits
    # Split layers also keep silu(gate) and the product: a quarter of four tensors, where whole ones keep two.
    assert 0.25 < peak.backbone_activations / whole.memory["none"].peak.backbone_activations < 0.7
    assert shared.positions_per_step == 64 * 2048
    # Each device: a quarter of the backbone, and all the rest, of the rows of its group.
    of_rows = whole.flops_per_step / 2
    assert shared.flops_per_step == of_rows
    backbone = 6 * matrices * 64 * 2048 + 12 * 32 * 4096 * 64 * 2048**2
    assert shared.device_flops_per_step == pytest.approx((backbone / 4 + of_rows - backbone) / 16)
    assert shared.step_seconds == pytest.approx(shared.device_flops_per_step / (989.4e12 * 0.4))
    assert shared.device_flops_per_step * 64 > 1.2 * of_rows
    assert whole.device_flops_per_step == whole.flops_per_step / 64


def test_rows_are_dealt_to_groups_of_devices():
    words = ["model=csm_8b", "strategy=fsdp", "strategy.tensor_parallel_size=8", "data.micro_batch_size=1"]
    result = plan(*words, "gpus=16", "data.global_batch_size=3")
    assert result.global_batch_size == 4 and "3 is no multiple of 2 groups of 8 devices" in result.notes[0]
    across = plan(*words, "gpus=16", "gpus_per_node=4", "data.global_batch_size=2")
    assert "exceeds gpus_per_node=4" in across.notes[0]


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=ddp", "strategy.tensor_parallel_size=2"],
        ["strategy=fsdp", "strategy.tensor_parallel_size=3"],
        ["strategy=fsdp", "strategy.tensor_parallel_size=0"],
        ["strategy=fsdp", "strategy.tensor_parallel_size=4", "model.backbone.kv_heads=2"],
        ["strategy=fsdp", "strategy.tensor_parallel_size=2", "lora.rank=2"],
    ],
)
def test_rejects_what_training_rejects(words, tmp_path):
    words = [*words, "trainer=cpu", "trainer.devices=4", "trainer.precision=32-true"]
    with pytest.raises(ValueError, match=r"strategy\.tensor_parallel_size") as training:
        train(compose_train([*words, "data.path=x", f"run_dir={tmp_path}"]))
    with pytest.raises(ValueError, match=r"strategy\.tensor_parallel_size") as planning:
        plan(*words, "gpu=cpu")
    assert str(planning.value) == str(training.value)
