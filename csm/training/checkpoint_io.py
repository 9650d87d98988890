"""Writing a checkpoint's bytes, in the background if wanted, and telling whole checkpoints from damaged ones.

Where a finished checkpoint goes is decided in csm/training/checkpointing.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import apply_to_collection
from torch import Tensor

from csm.checkpoint.sharded import OPTIMIZER, check_parts, is_sharded, read_sharded
from csm.checkpoint.zero import is_zero, read_zero
from csm.training.preemption import StopRequest


class CheckpointWriter(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files: `save_checkpoint` and `run` happen one after another, in a thread of
    their own if `background`.

    In the background a save costs training the time of a copy to host memory; the next save waits for this one. What
    fails raises nothing here, since other ranks would wait for ever for the one that writes: it is put down in
    `stop.error`, which all ranks learn of at the next step, and nothing more is written.

    Lightning's own writer fills a file of the system's temporary folder first, and hides why a write failed.
    """

    def __init__(self, stop: StopRequest, background: bool) -> None:
        self._stop = stop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.wait()  # never two copies in memory
        content = apply_to_collection(checkpoint, Tensor, _copy) if self._thread else checkpoint
        self.run(lambda: _write(content, Path(path)))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint; of a folder with the optimizer's state under names of parameters, where Lightning has
        numbers: only the module knows those (csm/training/module.py, `on_load_checkpoint`)."""
        path = Path(path)
        if not is_sharded(path):
            return super().load_checkpoint(path, map_location, weights_only)
        content, tensors = read_sharded(path)
        content["state_dict"] = {name: tensor.read() for name, tensor in tensors.items()}
        state: dict[str, dict[str, Tensor]] = {}
        for key, tensor in read_sharded(path, OPTIMIZER)[1].items():
            name, _, entry = key.removeprefix("state.").rpartition(".")
            state.setdefault(name, {})[entry] = tensor.read()
        content["optimizer_states"] = [{"state": state}]
        return content

    def run(self, task: Callable[[], None]) -> None:
        """Runs `task` once everything handed in before is done, if all of it succeeded."""

        def guarded() -> None:
            if self._stop.error is None:
                try:
                    task()
                except OSError as error:
                    self._stop.error = error

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
        with path.open("wb") as stream:  # a stream of ours: of its own files torch does not say why they failed
            torch.save(checkpoint, stream)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(
            f"checkpoint {path.parent / path.stem} cannot be written ({cause.strerror}); the earlier checkpoints are "
            "as they were: make room for it and start again to continue from the last one"
        ) from error


def check_whole(path: Path) -> None:
    """Raises FileNotFoundError or ValueError, saying what is wrong, if a checkpoint is missing or damaged.

    A file is read in full: torch stores a CRC-32 of every tensor, which loading does not look at. The folder of a
    sharded checkpoint, which may be too large for that, must have all its parts, those of FSDP in full length.
    """
    if path.is_dir():
        if is_zero(path):
            read_zero(path)
        elif is_sharded(path):
            check_parts(path)
        else:
            raise ValueError(f"{path} is a folder, but not of a sharded checkpoint")
        return
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    # Besides BadZipFile: what zipfile makes of headers with flipped bits (encryption, compression, names).
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({error})") from None
    if damaged is not None:
        raise ValueError(f"checkpoint {path} is damaged (the content of its record {damaged} has changed)")
