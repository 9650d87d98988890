"""DeepSpeed's checkpoints: folders in which every rank leaves its part of the fp32 weights and the optimizer's state.

    latest                                   the name of the subfolder, here always "checkpoint"
    checkpoint/*mp_rank_00_model_states.pt   what is not a tensor in a .ckpt file, and the weights as computed with
    checkpoint/*_optim_states.pt             a rank's part of the fp32 weights, flattened

DeepSpeed's own `zero_to_fp32` puts the weights together. It unpickles without restrictions, so the files are looked
through first: they may refer to the classes that such a checkpoint consists of, and to no others.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from csm.checkpoint.checksums import REMEDY, check_archive
from csm.formats.tensors import LazyTensor, Weights, load_pickled

TAG, LATEST = "checkpoint", "latest"
_CLASSES = {
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def is_zero(path: Path) -> bool:
    return (path / LATEST).is_file() and (path / TAG).is_dir()


def read_zero(path: Path) -> tuple[dict[str, Any], Weights]:
    """(the checkpoint without its tensors, the module's fp32 weights under their names in the LightningModule).

    All parts are memory-mapped at once, and a weight is put together when it is read. Raises ValueError naming the file
    that is damaged or refers to other classes.
    """
    states = sorted((path / TAG).glob("*mp_rank_00_model_states.pt"))
    parts = sorted((path / TAG).glob("*_optim_states.pt"))
    if not states or not parts:
        raise ValueError(f"checkpoint {path} is incomplete: a *_model_states.pt or *_optim_states.pt file is missing")
    for file in [*states, *parts]:
        _check(file)
    content = load_pickled(states[0])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint  # slow to import

    with contextlib.redirect_stdout(io.StringIO()):  # a report of what it finds
        tensors = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG, lazy_mode=True)
    # Of frozen weights a bf16 run has nothing but what it computes with.
    return content, {
        name: LazyTensor(tuple(tensor.shape), torch.float32, partial(_read_fp32, tensor))
        for name, tensor in tensors.items()
    }


def _read_fp32(tensor: Any) -> torch.Tensor:
    """A tensor of DeepSpeed's lazy state dictionary."""
    return tensor.contiguous().float()


def check_contents(path: Path, rank: int, ranks: int) -> None:
    """Reads this rank's share of the files, each being read by one. Raises ValueError naming one that has changed."""
    for file in sorted((path / TAG).glob("*.pt"))[rank::ranks]:
        try:
            check_archive(file)
        except ValueError as error:
            raise ValueError(f"checkpoint {path} is damaged: {file.name}: {error} ({REMEDY})") from None


def _check(file: Path) -> None:
    try:
        foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - _CLASSES
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({str(error).splitlines()[0]})") from None
    if foreign:
        raise ValueError(f"{file} holds Python objects ({', '.join(sorted(foreign))}), which are not loaded")
