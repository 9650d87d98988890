"""Chunks of the depth decoder bound its activations where weights are sharded: real passes of two processes, and what
is planned for them."""

from __future__ import annotations

import os
from dataclasses import replace
from multiprocessing.queues import Queue
from weakref import finalize

import pytest
import torch
from torch import Tensor

from csm.config import StrategyConfig, StrategyName
from csm.kernels import cpu
from csm.model.backward import backward_in_chunks
from csm.model.csm import CSM
from csm.parallel.plan import parallelize
from csm.parallel.strategies import build_engine, build_fabric, device_mesh
from csm.planning.activations import Precision
from csm.planning.estimate import make_plan
from csm.planning.request import read_request
from csm.planning.state import Parameters, training_state
from csm.training.module import CSMTrainingModule
from tests.conftest import TINY_OVERRIDES, compose_train
from tests.tiny import conversation, inputs, rows
from tests.training.forked import launcher_variables, server

LENGTH = 256
SMALL, ALL = 8, 10_000  # frames of a chunk
WORDS = [  # a depth decoder with most of the activations
    *TINY_OVERRIDES,
    "model.decoder={layers: 3, dim: 48, heads: 4, kv_heads: 2, ffn_dim: 96}",
    "loss.decoder_frame_ratio=1",
    f"data.max_seq_len={LENGTH}",
    "trainer.devices=2",
    "strategy=fsdp",
]


class LivingSavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Bytes of tensors that wait for backward passes, and the most at once: every storage once."""

    def __init__(self) -> None:
        super().__init__(self._pack, lambda kept: kept.tensor)
        self.users: dict[int, int] = {}
        self.bytes = self.peak = 0

    def _pack(self, tensor: Tensor) -> _Kept:
        kept, storage = _Kept(tensor), tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self.users[address] = self.users.get(address, 0) + 1
        if self.users[address] == 1:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        finalize(kept, self._freed, address, size)
        return kept

    def _freed(self, address: int, size: int) -> None:
        self.users[address] -= 1
        if not self.users[address]:
            self.bytes -= size


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def measure(rank: int, environment: dict[str, str], results: Queue) -> None:
    """For one chunk and for many: (peak of saved bytes, summed gradients of this rank's shards)."""
    os.environ.update({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    config = compose_train([*WORDS, "data.path=x"])
    fabric = build_fabric(config, 2, [], [])
    fabric.launch()
    with torch.device("meta"):
        model = CSM(config.model)
    cpu.install(model)
    level = config.trainer.activation_checkpointing
    parallelize(model, device_mesh(fabric), level, compile_blocks=False, bf16=False, cpu_offload=False)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    module = CSMTrainingModule(config, model)
    engine = build_engine(fabric, config, module, module.configure_optimizers())
    batch = rows([[conversation(2 * rank, (110, 120))]], max_seq_len=LENGTH)
    for chunk in (ALL, SMALL):
        loss = replace(config.loss, decoder_chunk=chunk)
        with (saved := LivingSavedBytes()):
            backward_in_chunks(engine, inputs(batch), loss, 100.0)
        assert saved.bytes == 0
        norms = [float(parameter.grad.to_local().norm()) for parameter in model.parameters()]
        results.put((chunk, saved.peak, norms))
        engine.optimizer.zero_grad()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_fsdp_processes_need_memory_for_one_chunk():
    """All frames in the depth decoder, in chunks of 8: less than half of what one chunk takes, the backbone's
    activations included; and the same gradients."""
    context = server()
    results, environment = context.Queue(), launcher_variables(2)
    processes = [context.Process(target=measure, args=(rank, environment, results)) for rank in range(2)]
    for process in processes:
        process.start()
    measured = [results.get(timeout=120) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    whole = [peak for chunk, peak, _ in measured if chunk == ALL]
    chunked = [peak for chunk, peak, _ in measured if chunk == SMALL]
    assert max(chunked) < min(whole) / 2
    of_whole = sorted(norms for chunk, _, norms in measured if chunk == ALL)
    of_chunks = sorted(norms for chunk, _, norms in measured if chunk == SMALL)
    for expected, found in zip(of_whole, of_chunks, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-7)


def test_chunks_are_planned_under_every_strategy():
    """The same activations of the decoder whatever the strategy, fewer with smaller chunks."""
    words = ["model=csm_1b", "gpus=8", "loss.decoder_frame_ratio=1", "data.micro_batch_size=1"]
    decoder = {}
    for name in ("ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3"):
        for chunk in (64, 512):
            plan = make_plan(*read_request([*words, f"strategy={name}", f"loss.decoder_chunk={chunk}"]))
            decoder[name, chunk] = plan.memory["none"].peak.decoder_activations
    assert decoder["fsdp", 64] < decoder["fsdp", 512] / 2
    assert decoder["deepspeed_zero2", 64] < decoder["deepspeed_zero2", 512] / 2
    assert decoder["fsdp", 512] < decoder["ddp", 512], "bf16 weights: no copies for autocast"


def test_fsdp_keeps_whole_gradients_of_earlier_chunks():
    """Of the decoder, its head and the projection, on every rank; with reduce_every_microbatch this rank's part."""
    words = ["model=csm_1b", "gpus=8", "strategy=fsdp", "loss.decoder_frame_ratio=1", "data.global_batch_size=8"]
    words += ["data.micro_batch_size=1", "loss.decoder_chunk=256"]
    parameters = Parameters.of(compose_train([words[0], "data.path=x"]).model, compose_train(["data.path=x"]).lora)
    decoder = sum(parameters.trained[part] for part in ("audio_head", "decoder", "projection"))
    head = parameters.trained["audio_head"]
    whole = make_plan(*read_request(words)).memory["none"].peak
    reduced = make_plan(*read_request([*words, "strategy.reduce_every_microbatch=true"])).memory["none"].peak
    assert whole.gradients == 4 * decoder + 4 * head, "and the head's of the present chunk, before it is added"
    assert reduced.gradients == 4 * decoder / 8 + 4 * head
    state = training_state(StrategyConfig(StrategyName.fsdp), parameters, 8, Precision.bf16, accumulates=False)
    assert state.unsummed_share == 8 * state.gradient_share == 4 and state.first_gradients == 0
