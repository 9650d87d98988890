"""Writing a checkpoint's bytes, in the background if wanted, and reading them.

Where a finished checkpoint goes is decided in csm/training/checkpointing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import apply_to_collection
from torch import Tensor

from csm.checkpoint.checksums import unwritten, writing
from csm.checkpoint.sharded import OPTIMIZER, is_sharded, read_sharded
from csm.training.candidates import Candidates
from csm.training.signals import StopRequest


class CheckpointWriter(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files: `save_checkpoint` and `run` happen one after another, in a thread of
    their own if `background`.

    In the background a save costs training the time of a copy to host memory; the next save waits for this one. What
    fails raises nothing here, since other ranks would wait for ever for the one that writes: it is put down in
    `stop.error`, which all ranks learn of at the next step, and nothing more is written.

    Lightning's own writer fills a file of the system's temporary folder first, and hides why a write failed.

    candidates: what is loaded, whichever of them Lightning asks for
    """

    def __init__(self, stop: StopRequest, background: bool, candidates: Candidates) -> None:
        self.stop, self.candidates = stop, candidates
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.wait()  # never two copies in memory
        content = apply_to_collection(checkpoint, Tensor, _copy) if self._thread else checkpoint
        self.run(lambda: _write(content, Path(path)))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The first whole candidate; of a folder with the optimizer's state under names of parameters, where Lightning
        has numbers: only the module knows those (csm/training/module.py, `on_load_checkpoint`)."""
        whole = super().load_checkpoint
        return self.candidates.load(
            lambda path: _read_folder(path) if is_sharded(path) else whole(path, map_location, weights_only)
        )

    def run(self, task: Callable[[], None]) -> None:
        """Runs `task` once everything handed in before is done, if all of it succeeded."""

        def guarded() -> None:
            if self.stop.error is None:
                try:
                    task()
                except OSError as error:
                    self.stop.error = error

        if self._thread:
            self._pending = self._thread.submit(guarded)
        else:
            guarded()

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises what is not a matter of files: a mistake of ours."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def teardown(self) -> None:
        self.wait()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as stream, writing():
            torch.save(checkpoint, stream)
    except OSError as error:
        raise unwritten(path, str(error.strerror)) from error


def _read_folder(path: Path) -> dict[str, Any]:
    content, tensors = read_sharded(path)
    content["state_dict"] = {name: tensor.read() for name, tensor in tensors.items()}
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_sharded(path, OPTIMIZER)[1].items():
        name, _, entry = key.removeprefix("state.").rpartition(".")
        state.setdefault(name, {})[entry] = tensor.read()
    content["optimizer_states"] = [{"state": state}]
    return content
