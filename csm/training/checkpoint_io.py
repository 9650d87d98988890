"""Lightning's checkpoint files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor

from csm.checkpoint.sharded import OPTIMIZER, is_sharded, read_sharded
from csm.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it; reads sharded folders too.

    Lightning's own writer moves a file from the system's temporary folder, which is a copy, and so can be cut
    short, wherever that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))

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
