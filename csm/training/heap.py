"""Memory of CPU training. glibc keeps what a step frees, in pieces that the next step's tensors do not fit into, so a
process grows to a multiple of what it needs at any moment (docs/benchmarks.md has figures)."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h; see mallopt(3)
_LARGE = 256 * 1024  # bytes: tensors, as opposed to Python's objects


def return_freed_memory() -> None:
    """From now on, freed tensors go back to the system at once: a lower peak for a slower step, since their memory
    has to be handed out anew. Raises ValueError where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all(mallopt(option, _LARGE) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)):
        raise ValueError("trainer.return_freed_memory needs Linux with glibc; leave it false")
