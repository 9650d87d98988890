"""Continuous batching over fixed slots: requests come and go while others are being spoken.

    submit --queue--> prefill into a free slot, chunk by chunk --> frame steps with all other slots --> finished

`Engine.advance` does one round: waiting requests take free slots, some positions of their prompts are prefilled, and
one frame step is taken for all slots that are speaking. What a request says does not depend on its neighbors.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from csm.inference.cache import KVCache, Prefix, attended_length
from csm.inference.frame_step import FrameStep, StepShape
from csm.inference.guards import FinishReason, RunawayWatch
from csm.inference.modes import Mode, step_runner
from csm.inference.sampling import Sampling, draw_noise
from csm.inference.weights import DecodingWeights

PREFILL_CHUNK = 512
"""Positions of prompts that are prefilled between two frame steps: so long do those wait who are speaking."""


@dataclass(eq=False)
class Request:
    """A turn to be spoken, and what has been said of it.

    tokens, mask: [S, K+1], the conversation up to the first frame to be generated, see csm/frames.py
    max_frames:   most frames
    room:         positions set aside for frames, if more: S + room must be below the model's max_seq_len
    prefix:       keys and values of the first positions of `tokens`, from an earlier request
    keep:         whether to leave a `kept` prefix behind for a later request
    without_text: [S', K+1] twice, `tokens` and `mask` of the same prompt without what guidance is to follow: given if
                  and only if `sampling` is guided, which takes a second slot
    frames:       codes `[n]` of every frame so far, on the host
    finished:     why it ended; None while it has not
    """

    tokens: Tensor
    mask: Tensor
    max_frames: int
    sampling: Sampling
    room: int = 0
    watch: RunawayWatch | None = None
    prefix: Prefix | None = None
    keep: bool = False
    without_text: tuple[Tensor, Tensor] | None = None
    frames: list[list[int]] = field(default_factory=list)
    finished: FinishReason | None = None
    kept: Prefix | None = None

    def codes(self) -> Tensor:
        """int64 `[n, T]`."""
        return torch.tensor(self.frames, dtype=torch.int64).T

    @property
    def places(self) -> int:
        """Slots that it takes."""
        return 1 if self.without_text is None else 2

    def twin(self) -> Request | None:
        """The request that reads the prompt without text, and goes on with the same frames; None without guidance."""
        if self.without_text is None:
            return None
        return Request(*self.without_text, self.max_frames, self.sampling, self.room, frames=self.frames)


class Slot:
    """A request in its place. arrival: grows from one to the next; `cached` positions are prefilled; `noise`: its
    random numbers, None if it is greedy; `held`: what the backbone reads next `[D]`, while it is held, see
    `Engine.hold`. A guided request has two: `leader` is the number of the other one, in the slot that reads the prompt
    without text."""

    def __init__(
        self, request: Request, inputs: Tensor, device: torch.device, arrival: int, leader: int | None = None
    ) -> None:
        self.request, self.arrival, self.leader = request, arrival, leader
        self.inputs = inputs  # [S, D]
        self.cached = 0
        self.speaking = False
        self.held: Tensor | None = None
        self.noise = request.sampling.generator(device) if leader is None else None

    @property
    def prefilled(self) -> bool:
        """Whether only the last position is left, which is the first step's."""
        return self.cached == len(self.inputs) - 1

    @property
    def position(self) -> int:
        """The position that the next step writes."""
        return len(self.inputs) - 1 + len(self.request.frames)


class Engine:
    """Slots over one set of weights. Any thread may call `submit`, `cancel` and `advance`; they take turns.

    slots:         requests spoken at the same time; others wait
    num_codebooks: generated per frame, at most the model's
    """

    def __init__(
        self, weights: DecodingWeights, slots: int = 1, num_codebooks: int | None = None, mode: Mode = "eager"
    ) -> None:
        config = weights.config
        self.weights, self.config = weights, config
        self.num_codebooks = num_codebooks or config.num_codebooks
        if not (1 <= self.num_codebooks <= config.num_codebooks and slots >= 1):
            raise ValueError(
                f"num_codebooks={num_codebooks} must lie in 1..{config.num_codebooks}, and slots={slots} from 1 on"
            )
        with torch.inference_mode():
            self.cache = KVCache(config.backbone, slots, config.max_seq_len, weights.dtype, weights.device)
            self.step = FrameStep(weights, self.cache, self.num_codebooks)
        self.mode, self.run_step = mode, step_runner(self.step, mode)
        self._usual_candidates = Sampling().candidates(config.codebook_size)
        self.slots: list[Slot | None] = [None] * slots
        self.waiting: deque[Request] = deque()
        self._arrivals = count()
        self._turn = threading.RLock()

    @torch.inference_mode()
    def warm_up(self, longest: int | None = None) -> None:
        """Compiles or captures the steps for all numbers of slots and for conversations of up to `longest` positions
        (the model's, if None). Later than that only guided requests, and a topk above MOST_CANDIDATES, need more."""
        with self._turn:
            assert all(slot is None for slot in self.slots), "warm up before the first request"
            most = self.cache.max_length
            lengths = {attended_length(n, most) for n in range(1, (longest or most) + 1)}
            batches = {min(1 << n, len(self.slots)) for n in range(len(self.slots).bit_length() + 1)}
            for batch in sorted(batches):
                for attended in sorted(lengths):
                    self.run_step(StepShape(batch, attended, self._usual_candidates))

    # ------------------------------------------------------------------------------------------ requests

    def submit(self, request: Request) -> Request:
        """Queues a request. Raises what `check` raises."""
        self.check(request)
        with self._turn:
            self.waiting.append(request)
        return request

    def check(self, request: Request) -> None:
        """Raises ValueError if a request does not fit into the model's positions (Sesame's rule), or holds ids that the
        model has no embedding for: nothing that is wrong with one request may be met in the middle of others."""
        assert request.sampling.guided == (request.without_text is not None)
        self._check_ids(request.tokens, request.mask)
        if request.without_text is not None:
            self._check_ids(*request.without_text)
            if len(self.slots) < 2:
                raise ValueError("guidance needs two slots, and this engine has one; give slots=2 or more")
        room = max(request.max_frames, request.room)
        limit = self.config.max_seq_len - room
        if len(request.tokens) >= limit:
            raise ValueError(
                f"prompt of {len(request.tokens)} positions is too long: it must stay below max_seq_len - max_frames = "
                f"{self.config.max_seq_len} - {room} = {limit}; "
                "give less context, a shorter text or a smaller max_audio_length_ms"
            )

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Ends a request, wherever it is; one that has finished stays as it is."""
        with self._turn:
            if request.finished:
                return
            if request in self.waiting:
                self.waiting.remove(request)
                request.finished = "cancelled"
            for number, slot in self._places(request)[:1]:
                self._finish(number, slot, "cancelled")

    @torch.inference_mode()
    def hold(self, request: Request) -> None:
        """Leaves a request that is speaking where it is until `resume`: steps then serve the others sooner."""
        with self._turn:
            for number, slot in self._places(request):
                if slot.speaking and slot.held is None:
                    slot.held = self.step.state.inputs[number].clone()  # steps of the others overwrite it
                    self.step.state.active[number] = 0

    @torch.inference_mode()
    def resume(self, request: Request) -> None:
        """Lets a request speak on that was held."""
        with self._turn:
            for number, slot in self._places(request):
                if slot.held is not None:
                    self.step.state.inputs[number] = slot.held
                    self.step.state.active[number] = 1
                    slot.held = None

    def run(self, *requests: Request) -> None:
        """Advances until all `requests` are finished; cancels those that are not, if interrupted."""
        try:
            while not all(request.finished for request in requests):
                self.advance()
        except BaseException:
            for request in requests:
                self.cancel(request)
            raise

    @torch.inference_mode()
    def advance(self) -> bool:
        """One round. False if there was nothing to do."""
        with self._turn:
            self._admit()
            self._prefill()
            if not any(slot is not None and slot.speaking and slot.held is None for slot in self.slots):
                return any(slot is not None for slot in self.slots)
            self._speak()
            return True

    def _check_ids(self, tokens: Tensor, mask: Tensor) -> None:
        config, columns = self.config, self.config.num_codebooks + 1
        if tokens.ndim != 2 or tokens.shape != mask.shape or tokens.shape[1] != columns or not len(tokens):
            shapes = f"tokens {tuple(tokens.shape)}, mask {tuple(mask.shape)}"
            raise ValueError(f"a prompt must be tokens and mask [S, {columns}] with S > 0, got {shapes}")
        sizes = torch.tensor([config.audio_vocab_size] * config.num_codebooks + [config.text_vocab_size])
        tokens = tokens.cpu()
        if bool(((tokens < 0) | (tokens >= sizes)).any()):
            raise ValueError(
                f"the prompt holds ids out of range: codes lie in 0..{config.audio_vocab_size - 1}, "
                f"text ids in 0..{config.text_vocab_size - 1}"
            )

    @property
    def blocked(self) -> bool:
        """Whether the first request that waits has to wait for slots, and those behind it as well."""
        free = sum(slot is None for slot in self.slots)
        return bool(self.waiting) and free < self.waiting[0].places

    # -------------------------------------------------------------------------------------------- rounds

    def _places(self, request: Request) -> list[tuple[int, Slot]]:
        """The slots of a request: one, or with guidance two, first the one that reads the text."""
        places = [(n, slot) for n, slot in enumerate(self.slots) if slot is not None]
        own = [(n, slot) for n, slot in places if slot.request is request]
        return own + [(n, slot) for n, slot in places if own and slot.leader == own[0][0]]

    def _admit(self) -> None:
        free = [n for n, slot in enumerate(self.slots) if slot is None]  # lowest first: a step computes all below
        while self.waiting and not self.blocked:  # nobody overtakes
            request = self.waiting.popleft()
            number = free.pop(0)
            self._place(number, request)
            if (twin := request.twin()) is not None:
                self._place(free.pop(0), twin, leader=number)

    def _place(self, number: int, request: Request, leader: int | None = None) -> None:
        device = self.weights.device
        tokens, mask = request.tokens.to(device), request.mask.to(device)
        inputs = self.weights.embed(tokens, mask)
        slot = self.slots[number] = Slot(request, inputs, device, next(self._arrivals), leader)
        if request.prefix is not None:
            # The last position is the first step's: it has to be computed for its state.
            slot.cached = min(request.prefix.length, len(tokens) - 1)
            self.cache.restore(number, request.prefix, slot.cached)
        # Steps taken meanwhile write here as well; the first step of the request writes it anew.
        self.step.state.positions[number] = slot.position

    def _prefill(self) -> None:
        """The next positions of prompts, PREFILL_CHUNK in all: of those first that came first. In the order of slots, a
        stream of requests in the lower ones would leave nothing for the last one, as long as it lasts."""
        room = PREFILL_CHUNK
        reading = [(n, slot) for n, slot in enumerate(self.slots) if slot is not None and not slot.speaking]
        for number, slot in sorted(reading, key=lambda place: place[1].arrival):
            start, end = slot.cached, min(slot.cached + room, len(slot.inputs) - 1)
            if end > start:
                rope = self.weights.backbone.rotations(torch.arange(start, end, device=self.weights.device))
                self.weights.backbone(slot.inputs[start:end], rope, self.cache.chunk(number, start, end - start))
                slot.cached, room = end, room - (end - start)
        for _, slot in reading:
            if slot.leader is None:
                places = self._places(slot.request)
                if all(place.prefilled for _, place in places):
                    self._begin(places)

    def _begin(self, places: list[tuple[int, Slot]]) -> None:
        """Lets a request speak whose prompt is read, in one or two slots."""
        state, numbers = self.step.state, [number for number, _ in places]
        for number, slot in places:
            state.inputs[number] = slot.inputs[-1]
            slot.speaking = True
        state.active[numbers] = 1
        sampling = places[0][1].request.sampling
        if not sampling.greedy:
            size = self.config.codebook_size
            state.temperature[numbers] = sampling.temperature
            state.topk[numbers] = min(sampling.topk or size, size)
        state.with_text[numbers], state.without_text[numbers] = numbers[0], numbers[-1]
        state.scale[numbers] = sampling.guidance

    def _speak(self) -> None:
        """One frame of every slot that is speaking."""
        speaking = [(n, s) for n, s in enumerate(self.slots) if s is not None and s.speaking and s.held is None]
        noise = self.step.state.noise
        for number, slot in speaking:
            if slot.noise is not None:
                draw_noise(noise[number], slot.noise)
        for number, slot in speaking:
            if slot.leader is not None:
                noise[number] = noise[slot.leader]
        batch = min(1 << speaking[-1][0].bit_length(), len(self.slots))
        longest = max(slot.position for _, slot in speaking) + 1
        candidates = max(slot.request.sampling.candidates(self.config.codebook_size) for _, slot in speaking)
        if self.mode != "eager":  # a shape less to compile and to capture
            candidates = max(candidates, self._usual_candidates)
        guided = any(slot.leader is not None for _, slot in speaking)
        shape = StepShape(batch, attended_length(longest, self.cache.max_length), candidates, guided)
        frames = self.run_step(shape)
        for number, slot in speaking:
            reason = self._see(slot.request, frames[number]) if slot.leader is None else None
            if reason is not None:
                self._finish(number, slot, reason)

    def _see(self, request: Request, frame: list[int]) -> FinishReason | None:
        """Takes a frame; the reason to end the request if it is the last one, or the end-of-speech frame."""
        if not any(frame):
            return "stop"
        request.frames.append(frame)
        reason = request.watch.see(frame) if request.watch is not None else None
        if reason is None and len(request.frames) == request.max_frames:
            return "length"
        return reason

    def _finish(self, number: int, slot: Slot, reason: FinishReason) -> None:
        request, state = slot.request, self.step.state
        if request.keep:
            # All positions that were read: the frame drawn last is not one of them.
            read = slot.position + (reason == "stop") if slot.speaking else slot.cached
            request.kept = self.cache.save(number, read)
        for place, _ in self._places(request):
            self.slots[place] = None
            state.active[place] = 0
            state.temperature[place], state.topk[place] = 1, 1
            state.with_text[place], state.without_text[place], state.scale[place] = place, place, 1
            state.noise[place] = 0
        request.finished = reason
