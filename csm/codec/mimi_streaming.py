"""Streaming decoder of Mimi, on moshi's streaming modules."""

from __future__ import annotations

import weakref
from copy import deepcopy
from typing import Any

import torch
from moshi.models import MimiModel
from moshi.modules.transformer import RingKVCache
from moshi.quantization.core_vq import EuclideanCodebook
from moshi.utils.compile import no_compile
from torch import Tensor, nn

from csm.codec.float32 import exact_float32
from csm.codec.streaming import StreamingDecoder, check_frame, check_slots


class MimiStreamingDecoder(StreamingDecoder):
    """Decodes as `MimiCodec.decode` does, up to the rounding of float sums.

    A slot's state takes about 9 MB: keys and values of 10 s in the decoder's transformer, and margins of convolutions.
    On CUDA, moshi replays graphs, which it captures in the second call; both calls are made here.
    """

    delay = 0

    def __init__(self, model: MimiModel, slots: int) -> None:
        """model: stays as it is, without a streaming state; its weights are shared."""
        check_slots(slots)
        self.slots = slots
        self.device = next(model.parameters()).device
        self._num_codebooks = model.num_codebooks
        self._model = _decoding_half(model)
        streaming = self._model.streaming(slots)
        streaming.__enter__()
        # moshi's modules, states and graphs refer to each other, so that without this they would outlive the decoder
        # until the garbage collector runs.
        self._finalizer = weakref.finalize(self, streaming.close)
        _widen_caches(self._model)
        if self.device.type == "cuda":
            codes = torch.zeros(slots, self._num_codebooks, 1, dtype=torch.int64, device=self.device)
            for _ in range(2):
                self.decode(codes, torch.zeros(slots, dtype=torch.bool, device=self.device))

    @torch.inference_mode()
    def decode(self, codes: Tensor, active: Tensor) -> Tensor:
        check_frame(codes, active, self.slots, self._num_codebooks)
        active = active.to(self.device)
        codes = codes.to(self.device, torch.int64) * active[:, None, None]  # any code of the others is in range now
        with exact_float32(), no_compile():
            self._model.set_exec_mask(active)
            audio = self._model.decode(codes)[:, 0]  # [B, samples]
        # An inactive slot that is new has nothing to attend to, which gives NaN.
        return torch.where(active[:, None], audio, 0.0)

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        mask = torch.arange(self.slots, device=self.device) == slot
        self._model.reset_streaming(mask)

    def finish(self, slot: int) -> Tensor:
        self.reset(slot)
        return torch.zeros(0, device=self.device)

    def close(self) -> None:
        self._finalizer()


def _decoding_half(model: MimiModel) -> MimiModel:
    """A copy of the modules that decode, with the tensors of `model`, so that its encoder keeps no streaming state."""
    for module in model.modules():
        if isinstance(module, EuclideanCodebook):
            _ = module.embedding  # computed on first use, and 2 MB each: compute it before it is shared
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for part in (model.encoder, model.encoder_transformer, model.downsample):
        shared[id(part)] = nn.Identity()
    return deepcopy(model, shared)


def _widen_caches(model: MimiModel) -> None:
    """Gives the ring caches the position that they lack.

    moshi's rings hold as many positions as a query attends to, and a frame writes two of them before it reads: the
    first of its queries would miss its oldest key, and the audio differ from the offline decode after 10 s.
    """
    steps = round(model.encoder_frame_rate / model.frame_rate)
    for state in model.get_streaming_state().values():
        ring = getattr(state, "kv_cache", None)
        if ring is not None:
            _, slots, heads, capacity, width = ring.cache.shape
            wider = capacity + steps - 1
            state.kv_cache = RingKVCache(slots, heads, width, wider, device=ring.cache.device, dtype=ring.cache.dtype)
