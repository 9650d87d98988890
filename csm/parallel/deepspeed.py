"""DeepSpeed's ZeRO 2 and 3 as an engine: its configuration, the boundaries of an optimizer step, its checkpoints.

`engine.backward` averages gradients over ranks, so losses are multiplied by their number as under DDP. It would divide
them by `gradient_accumulation_steps`, which therefore stays 1: losses of microbatches already are shares of the step's.
Gradient-accumulation boundaries are set explicitly. Clipping happens in `engine.step`, in fp32, after the last sum.

DeepSpeed skips steps by itself: those whose summed gradients are not finite, which all ranks see alike. A non-finite
loss on one rank is therefore made to produce non-finite gradients.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from csm.checkpoint.checksums import unwritten, writing
from csm.checkpoint.writer import CheckpointWriter
from csm.checkpoint.zero import LATEST, TAG, check_contents
from csm.config import StrategyConfig, StrategyName
from csm.model.csm import CSM
from csm.parallel.gradients import propagate_nonfinite
from csm.parallel.strategies import Engine, Judge

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine


class ZeroStrategy(DeepSpeedStrategy):
    """Fabric's strategy with our configuration. bf16: compute in bfloat16."""

    def __init__(self, options: StrategyConfig, bf16: bool, grad_clip: float) -> None:
        super().__init__(config=zero_config(options, bf16, grad_clip))


class ZeroEngine(Engine):
    def __init__(self, fabric: Fabric, module: nn.Module, optimizer: torch.optim.AdamW) -> None:
        super().__init__(fabric, module, optimizer)
        assert isinstance(fabric.strategy, DeepSpeedStrategy)
        self.engine: DeepSpeedEngine = fabric.strategy.model
        for model in module.modules():
            if isinstance(model, CSM) and hasattr(model.audio_embeddings.weight, "ds_id"):
                _register_audio_table(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)  # Fabric would cast inputs, slot weights among them

    @contextmanager
    def local_gradients(self) -> Iterator[None]:
        """Passes inside do not end the optimizer step."""
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(propagate_nonfinite(loss))

    def step(
        self, parts: dict[str, list[nn.Parameter]], grad_clip: float, judge: Judge
    ) -> tuple[dict[str, Tensor], Tensor]:
        """DeepSpeed clips and skips by itself; only the total norm is known, infinite if it has skipped the step."""
        self.engine.step()
        self.forget_gradients()
        norm = self.gradient_norm()
        return {"total": norm}, judge(norm)

    def forget_gradients(self) -> None:
        """Drops what DeepSpeed 0.19.8 keeps of the gradients of a finished step."""
        optimizer = self.engine.optimizer
        # ZeRO 3 overwrites the gradients of the last step in the first backward pass of a step and adds to them in
        # later ones, in which the backbone gets its first.
        if hasattr(optimizer, "grad_partitions_flat_buffer"):
            optimizer.grad_partitions_flat_buffer.zero_()
        # ZeRO 2 with offloading keeps those of a skipped step, and so skips every step from then on (in bf16).
        if not self.engine.was_step_applied():
            for group in optimizer.averaged_gradients:
                optimizer.averaged_gradients[group] = None

    def gradient_norm(self) -> Tensor:
        """2-norm [] of all gradients before clipping, known after the optimizer's step; infinite if that was skipped,
        on all ranks alike."""
        norm = self.engine.get_global_grad_norm() if self.engine.was_step_applied() else math.inf
        return torch.as_tensor(norm, dtype=torch.float32, device=self.fabric.device)

    def save(self, path: Path, content: dict[str, Any], writer: CheckpointWriter) -> None:
        """As `ShardedEngine.save`."""
        if self.fabric.broadcast(writer.error is not None):
            return
        path = Path(self.fabric.broadcast(str(path)))
        with _collecting_write_errors(self.engine.checkpoint_engine) as errors:
            self.engine.save_checkpoint(path, client_state=content, tag=TAG, save_latest=False)
        reasons: list[str | None] = [None] * self.fabric.world_size
        dist.all_gather_object(reasons, str(errors[0].strerror) if errors else None)
        failed = [f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None]
        if self.fabric.is_global_zero and failed:
            writer.error = unwritten(path, failed[0])
        elif self.fabric.is_global_zero:
            writer.run(lambda: (path / LATEST).write_text(TAG))

    def verify(self, path: Path) -> None:
        check_contents(path, self.fabric.global_rank, self.fabric.world_size)

    def load(self, path: Path) -> dict[str, Any]:
        _, content = self.engine.load_checkpoint(path, load_lr_scheduler_states=False)
        if content is None:
            raise ValueError(f"checkpoint {path} cannot be read by DeepSpeed")
        return content


def _register_audio_table(model: CSM) -> None:
    """Tells ZeRO 3 that the model itself reads the table of audio embeddings. DeepSpeed would find out when it happens,
    which after a skipped step may be in the middle of an order that it has recorded ("tracing error")."""
    import deepspeed

    deepspeed.zero.register_external_parameter(model, model.audio_embeddings.weight)


@contextmanager
def _collecting_write_errors(files: CheckpointEngine) -> Iterator[list[OSError]]:
    """Within the block DeepSpeed goes on whatever it cannot write, since its ranks wait for one another afterwards."""
    errors: list[OSError] = []

    def save(state_dict: Any, path: str) -> None:
        try:
            with open(path, "wb") as stream, writing():
                torch.save(state_dict, stream)
        except OSError as error:
            errors.append(error)

    def makedirs(path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            errors.append(error)

    files.save, files.makedirs = save, makedirs
    try:
        yield errors
    finally:
        del files.save, files.makedirs


def zero_config(options: StrategyConfig, bf16: bool, grad_clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration. bf16: weights and activations are bfloat16, over fp32 master weights that each rank
    keeps a part of; gradients are summed in fp32 as under `fsdp`."""
    zero: dict[str, Any] = {
        "stage": 2 if options.name is StrategyName.deepspeed_zero2 else 3,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": 200_000_000,
        "allgather_bucket_size": 200_000_000,
    }
    if options.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if zero["stage"] == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own throughput log reads it
        "gradient_clipping": grad_clip,
        "zero_optimization": zero,
        # Torch's fused AdamW, on GPU and CPU, as under every other strategy.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},  # in fp32 DeepSpeed checks anyway
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
