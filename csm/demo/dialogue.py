"""One visitor's dialogue: a script for two voices, spoken line by line with all that was said before as context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.audio import save_wav
from csm.demo.stage import Stage
from csm.inference.conversation import Conversation
from csm.inference.guards import FinishReason
from csm.inference.segments import Segment

NAMES = ("A", "B")
PAUSE_SECONDS = 0.3
LONGEST_MS = 30_000.0
MOST_LINES = 50


@dataclass
class Line:
    """A line of the script.

    codes: int64 [K, T] as generated, None before it was spoken: context of later lines
    audio: float32 [num_samples] as heard, with the watermark
    """

    speaker: int
    text: str
    codes: Tensor | None = None
    audio: Tensor | None = None
    finish_reason: FinishReason | None = None


class Dialogue:
    """Lines in turn for speakers 0 and 1.

    longest_ms: of a line, in milliseconds
    """

    def __init__(self, stage: Stage, longest_ms: float = LONGEST_MS) -> None:
        self.stage, self.longest_ms = stage, longest_ms
        self.lines: list[Line] = []
        self._voices: list[Segment] = []
        self._conversation: Conversation | None = None
        self._said: list[Tensor] = []  # codes of the lines that `_conversation` holds
        self._speaking = self._stopped = False

    def write(self, script: str, voices: Sequence[Segment] = ()) -> None:
        """Takes a new script, a line of text for each turn, and the voices that speak it (recordings with their text).

        Raises ValueError for an empty script, one that is too long, and while a line is being spoken.
        """
        self._check_idle()
        texts = [text for text in map(str.strip, script.splitlines()) if text]
        if not texts:
            raise ValueError("The script is empty: write a line for each turn, A's first.")
        if len(texts) > MOST_LINES:
            raise ValueError(f"The script has {len(texts)} lines, at most {MOST_LINES} are spoken.")
        self.lines = [Line(number % 2, text) for number, text in enumerate(texts)]
        self._voices, self._conversation = list(voices), None

    def edit(self, number: int, text: str) -> None:
        """Gives a line another text; it is silent until it is spoken again. Later lines stay as they were said."""
        self._check_idle()
        if not text.strip():
            raise ValueError(f"Line {number + 1} is empty.")
        self.lines[number] = Line(self.lines[number].speaker, text.strip())

    def speak(self, number: int, temperature: float = 0.9, topk: int = 50, seed: int | None = None) -> Iterator[Tensor]:
        """Speaks a line where it stands: yields float32 chunks, and keeps the line when it is complete.

        The context is the voices and all spoken lines before it. seed: of the dialogue; each line has one of its own.
        A line that is stopped, or whose iterator is closed, is as if it had not been spoken.
        Raises ValueError for what the generator refuses, and while another line is being spoken.
        """
        self._check_idle()
        self._speaking, self._stopped, stream = True, False, None
        line, chunks = self.lines[number], []
        line.codes = line.audio = line.finish_reason = None
        try:
            with self.stage.lock:
                conversation = self._conversation_before(number)
                own_seed = None if seed is None else seed + number
                options: dict[str, Any] = {"temperature": temperature, "topk": topk, "seed": own_seed}
                stream = conversation.stream(line.text, line.speaker, max_audio_length_ms=self.longest_ms, **options)
            while (chunk := self.stage.next(stream)) is not None:
                if self._stopped:
                    return
                chunks.append(chunk)
                yield chunk
            codes = self.stage.generator.codes(stream.request)
            line.codes, line.finish_reason = codes, stream.request.finished
            line.audio = torch.cat([torch.zeros(0), *chunks])
            self._said.append(codes)
        finally:
            if line.codes is None:
                self._conversation = None  # part of the line may be in it
                if stream is not None:
                    self.stage.leave(stream)
            self._speaking = False

    def stop(self) -> None:
        """Ends the line that is being spoken, from any thread, with its next chunk."""
        self._stopped = True

    def _conversation_before(self, number: int) -> Conversation:
        """The conversation up to a line: as it was left, or read anew where earlier lines have changed since."""
        earlier = [line for line in self.lines[:number] if line.codes is not None]
        same = len(earlier) == len(self._said) and all(
            line.codes is said for line, said in zip(earlier, self._said, strict=True)
        )
        if self._conversation is None or not same:
            self._conversation = Conversation(self.stage.generator, self._voices)
            self._said = []
            for line in earlier:
                self._conversation.hear(Segment(line.speaker, line.text, codes=line.codes))
                assert line.codes is not None
                self._said.append(line.codes)
        return self._conversation

    def _check_idle(self) -> None:
        if self._speaking:
            raise ValueError("A line is being spoken: wait for its end, or stop it.")

    @property
    def sample_rate(self) -> int:
        return self.stage.generator.sample_rate

    @property
    def pause(self) -> Tensor:
        """Silence between two lines, `[num_samples]`."""
        return torch.zeros(round(PAUSE_SECONDS * self.sample_rate))

    def audio(self) -> Tensor:
        """All spoken lines with pauses between them, float32 `[num_samples]`."""
        parts = [part for line in self.lines if line.audio is not None for part in (line.audio, self.pause)]
        return torch.cat([torch.zeros(0), *parts[:-1]])

    def transcript(self) -> str:
        """When each line is heard in `audio`, who says it, and what; headed by what the recording is."""
        rows, start = [disclosure(self.stage.generator.watermark.name), ""], 0.0
        for line in self.lines:
            if line.audio is not None:
                end = start + len(line.audio) / self.sample_rate
                rows.append(f"{start:6.2f} - {end:6.2f} s  {NAMES[line.speaker]}: {line.text}")
                start = end + PAUSE_SECONDS
        return "\n".join(rows) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """Writes dialogue.wav and dialogue.txt; returns their paths, none before anything was spoken."""
        audio = self.audio()
        if not len(audio):
            return []
        save_wav(folder / "dialogue.wav", audio, self.sample_rate)
        (folder / "dialogue.txt").write_text(self.transcript(), encoding="utf-8")
        return [folder / "dialogue.wav", folder / "dialogue.txt"]


def disclosure(watermark: str) -> str:
    """A sentence for listeners: that speech is synthetic, and whether it is marked."""
    if watermark == "none":
        return "This speech is synthetic: no human said it. It carries no watermark."
    return f"This speech is synthetic: no human said it. It carries an inaudible watermark ({watermark})."
