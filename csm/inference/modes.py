"""Modes of running a frame step: operation by operation, compiled, or as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from csm.inference.frame_step import FrameStep, StepShape

Mode = Literal["eager", "compiled", "cuda_graph"]
"""eager: operation by operation, wherever there is no compiler. compiled: after a minute of compiling; hardly faster on
CPUs (docs/inference.md). cuda_graph: compiled, then captured once for each `StepShape`, so that a frame costs one
launch; not yet run on a GPU."""
RunStep = Callable[[StepShape], list[list[int]]]
"""Runs a step and returns the frames `[batch][n]` on the host: the one copy of a frame."""

WARM_UP = 3
"""Runs before a capture, as PyTorch's documentation of CUDA graphs advises."""


def step_runner(step: FrameStep, mode: Mode) -> RunStep:
    """Raises ValueError for CUDA graphs on another device."""
    if mode != "eager":
        step.compile()
    if mode == "cuda_graph":
        if step.weights.device.type != "cuda":
            raise ValueError(f"mode=cuda_graph needs a model on CUDA, this one is on {step.weights.device}")
        return FrameGraphs(step)

    def run(shape: StepShape) -> list[list[int]]:
        step(shape)
        return step.state.frame[: shape.batch].tolist()

    return run


class FrameGraphs:
    """A CUDA graph of the whole step for each shape, captured when it is first needed; they share their memory."""

    def __init__(self, step: FrameStep) -> None:
        self.step = step
        self.graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.host = torch.empty_like(step.state.frame, device="cpu").pin_memory()

    def __call__(self, shape: StepShape) -> list[list[int]]:
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(shape)
        self.graphs[shape].replay()
        frames = self.host[: shape.batch]
        frames.copy_(self.step.state.frame[: shape.batch], non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return frames.tolist()

    def _capture(self, shape: StepShape) -> torch.cuda.CUDAGraph:
        state = self.step.state
        before = {name: tensor.clone() for name, tensor in vars(state).items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step(shape)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.step(shape)
        for name, tensor in before.items():  # what was written to the cache is beyond the positions, or written again
            getattr(state, name).copy_(tensor)
        return graph
