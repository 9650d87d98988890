"""A callback for runs of DDP: where the gradients are between two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Buckets:
    """Writes the steps after which every gradient is zero and where it was after the step before."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.steps: list[str] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.requires_grad]
        assert not any(gradient.any() for gradient in gradients)
        places = [gradient.data_ptr() for gradient in gradients]
        assert places == (self.places or places)
        self.places = places
        self.steps.append(str(trainer.step))
        (Path(trainer.config.run_dir) / "buckets").write_text(" ".join(self.steps))
