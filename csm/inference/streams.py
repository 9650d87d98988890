"""Speech that is heard while it is spoken: frames of all listeners are decoded together, chunks handed out to each.

engine --frames--> AudioStreams, one streaming decoder for all --audio--> SpeechStream --chunks--> listener
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from csm.codec import Codec
from csm.codec.streaming import StreamingDecoder
from csm.inference.engine import Engine, Request
from csm.watermark.base import UNMARKED, MarkStream


@dataclass(frozen=True)
class ChunkRamp:
    """Frames of the chunks: `first`, then twice as many each time, up to `most`.

    The first sound comes early, and a listener who has heard some of it gets larger chunks, which are cheaper to send.
    """

    first: int = 1
    most: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.most:
            raise ValueError(f"first_chunk_frames={self.first} and chunk_frames={self.most}: need 1 <= first <= most")

    def sizes(self) -> Iterator[int]:
        size = self.first
        while True:
            yield size
            size = min(2 * size, self.most)


@dataclass(eq=False)
class Listener:
    """The decoded part of a request. slot: of the decoder, None before its first frame."""

    request: Request
    slot: int | None = None
    decoded: int = 0  # frames
    silence: int = 0  # samples before its sound, still to be dropped
    audio: list[Tensor] = field(default_factory=list)  # not handed out yet
    complete: bool = False

    @property
    def behind(self) -> bool:
        return self.decoded < len(self.request.frames)

    def take(self) -> Tensor:
        """Audio that no chunk has had yet, `[num_samples]`."""
        chunk, self.audio = torch.cat([torch.zeros(0), *self.audio]), []
        return chunk


class AudioStreams:
    """Decodes the frames of all listeners, one frame of each at a time."""

    def __init__(self, codec: Codec, engine: Engine) -> None:
        self.codec, self.engine = codec, engine
        self.listeners: list[Listener] = []
        slots = len(engine.slots)
        self.free = list(range(slots))
        self.decoder: StreamingDecoder = codec.streaming_decoder(slots)

    def listen(self, request: Request) -> Listener:
        listener = Listener(self.engine.submit(request))
        self.listeners.append(listener)
        return listener

    def advance(self) -> None:
        """One round of the engine, and the audio of what it has said."""
        self.engine.advance()
        self._decode()

    def leave(self, listener: Listener) -> None:
        """Ends a request whose listener is gone, and frees what was kept for it."""
        self.engine.cancel(listener.request)
        if listener in self.listeners:
            self._remove(listener)

    @torch.inference_mode()
    def _decode(self) -> None:
        while True:
            for listener in [one for one in self.listeners if one.request.finished and not one.behind]:
                self._finish(listener)
            # As many speak at a time as the decoder has slots; others are behind and wait for those that are ending.
            for listener in self.listeners:
                if listener.behind and listener.slot is None and self.free:
                    listener.slot, listener.silence = self.free.pop(0), self.decoder.delay
                    self.decoder.reset(listener.slot)
            ready = [(one.slot, one) for one in self.listeners if one.behind and one.slot is not None]
            if not ready:
                return
            slots = len(self.engine.slots)
            codes = torch.zeros(slots, self.engine.num_codebooks, 1, dtype=torch.int64)
            active = torch.zeros(slots, dtype=torch.bool)
            for slot, listener in ready:
                codes[slot, :, 0] = torch.tensor(listener.request.frames[listener.decoded])
                active[slot] = True
            audio = self.decoder.decode(codes, active).float().cpu()  # [slots, samples]
            for slot, listener in ready:
                listener.decoded += 1
                self._give(listener, audio[slot])

    def _give(self, listener: Listener, audio: Tensor) -> None:
        listener.audio.append(audio[listener.silence :])
        listener.silence = max(0, listener.silence - len(audio))

    def _finish(self, listener: Listener) -> None:
        if listener.slot is not None:
            self._give(listener, self.decoder.finish(listener.slot).float().cpu())
        listener.complete = True
        self._remove(listener)

    def _remove(self, listener: Listener) -> None:
        self.listeners.remove(listener)
        if listener.slot is not None:
            self.decoder.reset(listener.slot)
            self.free.append(listener.slot)
            listener.slot = None


class SpeechStream(Iterator[Tensor]):
    """Chunks of a turn, float32 `[num_samples]` on the CPU, as it is spoken.

    Speaking begins with the first `next`. Whoever stops listening closes the stream, or drops it: the turn is cancelled
    and its slot free.
    """

    def __init__(
        self,
        streams: AudioStreams,
        request: Request,
        ramp: ChunkRamp,
        ended: Callable[[Request], None] | None = None,
        mark: MarkStream = UNMARKED,
    ) -> None:
        """ended: called once when the turn is complete, or cancelled after it began; mark: what chunks go through"""
        self.request = request
        # does not refer to the stream, whose end is its end
        self._chunks = _marked(_chunks(streams, request, ramp, ended), mark)

    def __next__(self) -> Tensor:
        return next(self._chunks)

    def close(self) -> None:
        """Ends the turn, if it has not ended."""
        self._chunks.close()


def _chunks(
    streams: AudioStreams, request: Request, ramp: ChunkRamp, ended: Callable[[Request], None] | None
) -> Generator[Tensor, None, None]:
    listener = streams.listen(request)
    given = 0
    try:
        for size in ramp.sizes():
            while not listener.complete and listener.decoded - given < size:
                streams.advance()
            if listener.complete:
                break
            given = listener.decoded
            if len(chunk := listener.take()):
                yield chunk
    finally:
        streams.leave(listener)
        if ended is not None:
            ended(request)
    if len(chunk := listener.take()):
        yield chunk


def _marked(chunks: Generator[Tensor, None, None], mark: MarkStream) -> Generator[Tensor, None, None]:
    """Chunks with a watermark, which may hold samples back until it has seen those after them."""
    with closing(chunks):
        for chunk in chunks:
            if len(marked := mark.push(chunk)):
                yield marked
    if len(rest := mark.flush()):
        yield rest
