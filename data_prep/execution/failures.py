"""What an exception of a stage means for the recording that it was working on."""

from __future__ import annotations

import errno
from enum import Enum

import torch

from csm.judges.hub import ModelUnavailable


class Failure(Enum):
    transient = "transient"  # may pass: tried again
    permanent = "permanent"  # of the recording or the program: not tried again in this run
    fatal = "fatal"  # the process, or the whole run, cannot go on


_WAIT_AND_TRY = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
}
_NOTHING_HELPS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}


def classify(error: BaseException) -> Failure:
    """Fatal: a full disk; a missing model or library (missing audio is `RejectedRecording`); and every CUDA fault but
    lack of memory, after which a process's device context is dead."""
    if isinstance(error, (ImportError, FileNotFoundError, ModelUnavailable)):
        return Failure.fatal
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return Failure.transient
    if isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA" in str(error)):
        return Failure.transient if "out of memory" in str(error) else Failure.fatal
    if isinstance(error, OSError) and error.errno in _NOTHING_HELPS:
        return Failure.fatal
    if isinstance(error, (ConnectionError, TimeoutError)) or (
        isinstance(error, OSError) and error.errno in _WAIT_AND_TRY
    ):
        return Failure.transient
    return Failure.permanent
