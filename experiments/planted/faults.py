"""Faults that are planted into small trainings, each where users make them: in an option, in the data, in the code.

`train_case` trains a small model on the demo recordings with one of them. The metrics.jsonl that it leaves is all that
experiments/planted/signs.py may read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from csm.compose import TRAIN
from csm.config import CodecConfig, CodecKind
from csm.data import rows as rows_module
from csm.data.packing import RowBatch
from csm.data.sample import Sample, Turn
from csm.frames import Frames, TurnTokens, conversation_frames
from csm.model.csm import CSM
from csm.training.build import train
from csm.training.loggers import read_lines
from data_prep.config import DataPrepConfig, ReportConfig
from data_prep.demo import prepare_demo_dataset

Records = list[dict[str, Any]]
"""Lines of metrics.jsonl; values that are not finite are None."""

CODEC = CodecConfig(kind=CodecKind.spectral, num_codebooks=8, codebook_size=64)
VOCAB_SIZE = CODEC.codebook_size + 3
"""Codes of a codebook as the model counts them."""

OVERRIDES = [
    "experiment=quickstart",
    "model.backbone={layers: 2, dim: 96, heads: 2, kv_heads: 2, ffn_dim: 128}",
    "model.decoder={layers: 1, dim: 64, heads: 2, kv_heads: 1, ffn_dim: 128}",
    "model.rope.base=100",  # a model this small and short learns where to look in tens of steps, not in hundreds
    f"codec.num_codebooks={CODEC.num_codebooks}",
    f"codec.codebook_size={CODEC.codebook_size}",
    "data.prepare=null",
    "data.max_seq_len=384",
    "data.global_batch_size=4",
    "data.micro_batch_size=4",
    "data.num_workers=0",
    "data.frame_dropout=0.3",
    "loss.decoder_frame_ratio=16",
    "optim.lr=1e-2",
    "optim.warmup_steps=10",
    "optim.schedule=wsd",
    "trainer.precision=32-true",
    "trainer.sample_every_steps=0",
    "trainer.checkpoint_every_steps=0",
]
LENGTH = ["trainer.max_steps=60", "trainer.log_every_steps=4", "trainer.val_every_steps=20"]


@contextmanager
def labels_one_frame_late() -> Iterator[None]:
    """Labels that are shifted twice: the state before frame p is trained to predict frame p+1."""
    losses = CSM.backbone_losses

    def late(self: CSM, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        embed_rows = self.embed_rows
        later = torch.cat((tokens[..., :-1].roll(-1, 1), tokens[..., -1:]), dim=-1)
        with patch.object(self, "embed_rows", lambda _, mask, codes: embed_rows(tokens, mask, codes)):
            return losses(self, later, *args, **kwargs)

    with patch.object(CSM, "backbone_losses", late):
        yield


@contextmanager
def missing_ends() -> Iterator[None]:
    """Conversations laid out without the all-zero frame that ends every turn."""

    def without_ends(turns: list[TurnTokens], num_codebooks: int) -> Frames:
        frames = conversation_frames(turns, num_codebooks)
        kept = ~frames.eos
        return Frames(frames.tokens[kept], frames.mask[kept], frames.targets[kept], frames.eos[kept])

    with patch.object(rows_module, "conversation_frames", without_ends):
        yield


@contextmanager
def no_causal_mask() -> Iterator[None]:
    """Positions of the backbone see the whole of their document, what they are to predict included."""

    def whole_document(rows: RowBatch) -> Tensor:
        return (rows.documents[:, :, None] == rows.documents[:, None, :])[:, None]

    with patch.object(RowBatch, "attention_mask", whole_document):
        yield


@contextmanager
def reversed_codebooks() -> Iterator[None]:
    """Data whose codebooks are stored last first."""
    turn_codes = Sample.turn_codes

    def last_first(sample: Sample, turn: Turn) -> np.ndarray:
        return np.ascontiguousarray(turn_codes(sample, turn)[::-1])

    with patch.object(Sample, "turn_codes", last_first):
        yield


@dataclass(frozen=True)
class Case:
    """A training: options that differ from the healthy one, and what is patched while it runs."""

    overrides: tuple[str, ...] = ()
    patched: Callable[[], AbstractContextManager[None]] = nullcontext


CASES = {
    "healthy": Case(),
    "shifted labels": Case(patched=labels_one_frame_late),
    "dead decoder": Case(("optim.decoder_lr_scale=0",)),
    "wrong loss weight": Case(("loss.c0_weight=0.03",)),
    "missing ends": Case(patched=missing_ends),
    "unmasked context": Case(patched=no_causal_mask),
    "learning rate x10": Case(("optim.lr=1e-1",)),
    "swapped codebooks": Case(patched=reversed_codebooks),
}


def prepare_data(folder: Path) -> Path:
    """The demo recordings (82 s of them for training) in the codes of `CODEC`."""
    output = folder / "demo"
    prepare_demo_dataset(DataPrepConfig(output=str(output), codec=CODEC, report=ReportConfig(conversations=1)))
    return output


def train_case(case: Case, dataset: Path, run_dir: Path, seed: int = 1234) -> Records:
    """Trains with a fault in `run_dir`; returns the lines of metrics.jsonl."""
    words = [*OVERRIDES, *LENGTH, *case.overrides, f"data.path={dataset}", f"seed={seed}", f"run_dir={run_dir}"]
    with case.patched():
        train(TRAIN.options(TRAIN.compose(words)))
    return read_lines(run_dir / "metrics.jsonl")
