"""The interface of streaming decoders: audio of many slots, frame by frame, each slot at its own place.

decoder = codec.streaming_decoder(slots=8)
decoder.reset(slot)                         before a slot's first frame
audio = decoder.decode(codes, active)       once for each frame; slots that are not active stay as they are
tail = decoder.finish(slot)                 after its last frame
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class StreamingDecoder(Protocol):
    """Decodes one frame of every active slot at a time.

    A slot's audio is the concatenation of what `decode` returned for it while it was active, and of what `finish`
    returned. It lags `delay` samples behind its codes: drop so many at its begin (silence, or almost), and it has
    `samples_per_frame` samples for each frame, as `Codec.decode` of all its codes has.

    The decoder has states of its own; `encode` and `decode` of the codec may be called at any time, in between or from
    other threads. It is itself for one thread.
    """

    slots: int
    delay: int  # samples, below samples_per_frame

    def decode(self, codes: Tensor, active: Tensor) -> Tensor:
        """The next frame of each active slot: int64 codes [B, k, 1], bool active [B] -> float32 [B, samples_per_frame].

        B is `slots`, k from 1 to K: the first k codebooks, which may differ from call to call. Rows that are not active
        may hold anything; their audio is zero. Whether active codes are in range is not checked, since that would make
        the host wait for the device. Raises ValueError for other shapes and dtypes.
        """
        ...

    def reset(self, slot: int) -> None:
        """Makes a slot as new: nothing of what it decoded before is heard again."""
        ...

    def finish(self, slot: int) -> Tensor:
        """The last `delay` samples of a slot's audio, float32 [delay] on the codec's device; resets the slot.

        Empty if the slot has decoded nothing since its reset.
        """
        ...

    def close(self) -> None:
        """Frees the states at once; they are freed as well where the decoder is dropped without this call."""
        ...


def check_frame(codes: Tensor, active: Tensor, slots: int, num_codebooks: int) -> None:
    """Raises ValueError unless `codes` and `active` are the arguments of `StreamingDecoder.decode`."""
    frame = codes.ndim == 3 and codes.shape[0] == slots and codes.shape[2] == 1
    if not frame or not 1 <= codes.shape[1] <= num_codebooks or codes.is_floating_point():
        raise ValueError(
            f"codes of a frame must be integers [{slots}, 1..{num_codebooks}, 1], got {codes.dtype} "
            f"{tuple(codes.shape)}"
        )
    if tuple(active.shape) != (slots,) or active.dtype is not torch.bool:
        raise ValueError(f"active must be bool [{slots}], got {active.dtype} {tuple(active.shape)}")


def check_slots(slots: int) -> None:
    """Raises ValueError unless there is at least one slot."""
    if slots < 1:
        raise ValueError(f"slots={slots}: a streaming decoder needs at least one")
