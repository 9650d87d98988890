"""How a frame step is run: operation by operation, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from csm.inference.frame_step import FrameStep, StepShape

Mode = Literal["eager", "compiled"]
RunStep = Callable[[StepShape], list[list[int]]]
"""Runs a step and returns the frames `[batch][n]` on the host: the one copy of a frame."""


def step_runner(step: FrameStep, mode: Mode) -> RunStep:
    if mode == "compiled":
        step.first_code = torch.compile(step.first_code, fullgraph=True, dynamic=False)
        step.next_code = torch.compile(step.next_code, fullgraph=True, dynamic=False)

    def run(shape: StepShape) -> list[list[int]]:
        step(shape)
        return step.state.frame[: shape.batch].tolist()

    return run
