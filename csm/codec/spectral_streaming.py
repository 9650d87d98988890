"""Streaming decoder of the spectral codec: phases are searched for a few windows at a time.

`SpectralCodec.decode` finds phases for a whole clip (Griffin-Lim), which needs its end. Here they are found as in
real-time iterative spectrogram inversion (Zhu, Beauregard and Wyse, 2007). There are eight windows to a frame:

    4 decided | LOOK_AHEAD kept from the last call, 8 new

All but the decided ones are iterated until their overlaps agree; then the first 8 of them are decided, and audio that
no later window reaches is given out. So the audio is another than that of `decode`, of nearly the same spectrogram:
docs/benchmarks.md states by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.codec import mel
from csm.codec.streaming import StreamingDecoder, check_frame, check_slots

LOOK_AHEAD = 2  # windows
ITERATIONS = 16
_NEIGHBOURS = (mel.WINDOW - 1) // mel.HOP  # windows before one that overlap with it
_HELD = _NEIGHBOURS * mel.HOP - mel.MARGIN  # samples from the begin of the decided windows to the first not given out


@dataclass
class _Slot:
    decided: Tensor  # complex64 [_NEIGHBOURS, WINDOW // 2 + 1]
    magnitudes: Tensor  # float32 [LOOK_AHEAD, WINDOW // 2 + 1], of the windows that are kept
    phases: Tensor  # complex64 of absolute value 1, same shape
    begun: bool = False


class SpectralStreamingDecoder(StreamingDecoder):
    """See the module's docstring. A slot's audio is bit for bit the same whatever the other slots do."""

    delay = LOOK_AHEAD * mel.HOP + mel.MARGIN

    def __init__(
        self,
        spectrogram: Callable[[Tensor], Tensor],
        num_codebooks: int,
        samples_per_frame: int,
        filterbank: Tensor,
        slots: int,
    ) -> None:
        """spectrogram: codes [k, 1] -> log-mel [samples_per_frame / HOP, NUM_MELS] on the filter bank's device"""
        check_slots(slots)
        self.slots = slots
        self._spectrogram = spectrogram
        self._num_codebooks = num_codebooks
        self._samples = samples_per_frame
        self._filterbank = filterbank
        self._states = [self._silence() for _ in range(slots)]

    @torch.inference_mode()
    def decode(self, codes: Tensor, active: Tensor) -> Tensor:
        check_frame(codes, active, self.slots, self._num_codebooks)
        silence = torch.zeros(self._samples, device=self._filterbank.device)
        rows = [self._step(self._states[i], codes[i]) if on else silence for i, on in enumerate(active.tolist())]
        return torch.stack(rows)

    def _step(self, state: _Slot, codes: Tensor) -> Tensor:
        """Codes [k, 1] of a slot's next frame -> audio [samples_per_frame]."""
        new = mel.linear_magnitudes(self._spectrogram(codes), self._filterbank)
        magnitudes = torch.cat([state.magnitudes, new])
        phases = torch.cat([state.phases, mel.start_phases(new, seed=0)])
        phases = mel.find_phases(magnitudes, phases, ITERATIONS, before=state.decided)
        spectrum = torch.cat([state.decided, magnitudes * phases])
        kept = len(spectrum) - LOOK_AHEAD
        state.decided = spectrum[kept - _NEIGHBOURS : kept]
        state.magnitudes, state.phases = magnitudes[-LOOK_AHEAD:], phases[-LOOK_AHEAD:]
        state.begun = True
        return mel.istft(spectrum[:kept])[_HELD : _HELD + self._samples]

    def reset(self, slot: int) -> None:
        self._states[slot] = self._silence()

    @torch.inference_mode()
    def finish(self, slot: int) -> Tensor:
        state = self._states[slot]
        self.reset(slot)
        if not state.begun:
            return torch.zeros(0, device=self._filterbank.device)
        return mel.istft(torch.cat([state.decided, state.magnitudes * state.phases]))[_HELD:]

    def close(self) -> None:
        self._states.clear()

    def _silence(self) -> _Slot:
        """A slot before its first frame."""
        bins, device = mel.WINDOW // 2 + 1, self._filterbank.device
        kept = torch.zeros(LOOK_AHEAD, bins, device=device)
        decided = torch.zeros(_NEIGHBOURS, bins, dtype=torch.complex64, device=device)
        return _Slot(decided, kept, torch.ones_like(kept, dtype=torch.complex64))
