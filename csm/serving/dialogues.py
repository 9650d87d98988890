"""Conversations that clients come back to: turns spoken and heard, in the engine's cache and on disk.

A turn is one file, written whole or not at all (`conversations/ID/000003.safetensors`), so that a server that is
killed finds every finished turn when it starts again. Keys and values are computed anew then, by the next turn.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from csm.files import remove, sync, write_atomically, write_tensors
from csm.inference.conversation import Conversation, Turn
from csm.inference.generator import Generator
from csm.inference.segments import Segment
from csm.serving.errors import ApiError, invalid
from csm.serving.settings import Limits, Settings

_ID = re.compile(r"conv_[0-9a-f]{24}")


@dataclass(eq=False)
class DialogueTurn:
    """A turn on disk. kind: voice, heard or spoken; ended: of a spoken one, why; turn: its place in the cache."""

    number: int
    kind: str
    speaker: int
    text: str
    codes: Tensor  # int64 [K, T]
    ended: str | None = None
    turn: Turn | None = None

    def same(self, other: DialogueTurn) -> bool:
        """Whether `other` is this turn: numbers are taken again where turns were cut off."""
        alike = self.number == other.number and self.text == other.text
        return alike and torch.equal(self.codes, other.codes)

    def public(self, frame_rate: float) -> dict[str, Any]:
        return {
            "number": self.number,
            "kind": self.kind,
            "speaker": self.speaker,
            "text": self.text,
            "seconds": round(self.codes.shape[1] / frame_rate, 2),
            "finish_reason": self.ended,
        }


class Dialogue:
    """A conversation and its turns; folder: None for one that is forgotten after a response.

    Whoever speaks or changes it holds `lock`; waiting: how many want it.
    """

    def __init__(self, generator: Generator, folder: Path | None, voices: Sequence[Segment]) -> None:
        self.generator, self.folder = generator, folder
        self.lock, self.waiting = asyncio.Lock(), 0
        self.turns: list[DialogueTurn] = []
        self.conversation = Conversation(generator, voices)
        for voice, turn in zip(voices, self.conversation.turns, strict=True):
            self._append("voice", voice.speaker, voice.text, turn)

    def check_room(self, limits: Limits) -> None:
        """Raises ApiError if it has the most turns that are kept."""
        if len(self.turns) >= limits.turns:
            raise invalid(f"the conversation has {limits.turns} turns, the most", "session_id", "too_many_turns")

    def hear(self, segment: Segment) -> DialogueTurn:
        """Adds a turn that somebody else said. Raises ValueError if it cannot be read."""
        self.conversation.hear(segment)
        return self._append("heard", segment.speaker, segment.text, self.conversation.turns[-1])

    def spoken(self, speaker: int, text: str, turn: Turn, ended: str) -> DialogueTurn:
        """Keeps a turn that the conversation has taken up."""
        return self._append("spoken", speaker, text, turn, ended)

    def cut(self, turn: DialogueTurn, frames: int) -> None:
        """Forgets what was said after the first `frames` frames of `turn`."""
        if turn.turn is None or turn.turn not in self.conversation.turns:
            return
        following = self.turns[self.turns.index(turn) + bool(frames) :]
        for later in reversed(following):  # the last one first: whatever happens in between, no turn is missing
            self.turns.remove(later)
            if self.folder is not None:
                self._file(later).unlink()
        self.conversation.cut(turn.turn, frames)
        if frames:
            turn.turn, turn.codes, turn.ended = self.conversation.turns[-1], turn.codes[:, :frames].clone(), "cancelled"
            self._write(turn)
        elif self.folder is not None:
            sync(self.folder)

    def find(self, turn: DialogueTurn) -> DialogueTurn | None:
        """A turn of this conversation as it was before it was loaded anew; None if it is no longer there."""
        return next((one for one in self.turns if one is turn or one.same(turn)), None)

    def _append(self, kind: str, speaker: int, text: str, turn: Turn, ended: str | None = None) -> DialogueTurn:
        number = self.turns[-1].number + 1 if self.turns else 0
        assert turn.tokens.codes is not None, "turns of a conversation have codes"
        added = DialogueTurn(number, kind, speaker, text, turn.tokens.codes, ended, turn)
        self._write(added)
        self.turns.append(added)
        return added

    def _file(self, turn: DialogueTurn) -> Path:
        assert self.folder is not None
        return self.folder / f"{turn.number:06d}.safetensors"

    def _write(self, turn: DialogueTurn) -> None:
        if self.folder is None:
            return
        about = {"kind": turn.kind, "speaker": str(turn.speaker), "text": turn.text, "ended": turn.ended or ""}
        codes = turn.codes.to(torch.int32).contiguous()
        write_tensors(self._file(turn), {"codes": codes}, about)

    @classmethod
    def restored(cls, generator: Generator, folder: Path) -> Dialogue:
        """The conversation in a folder. Raises ValueError for turns of another codec."""
        found = [_read(file) for file in sorted(folder.glob("*.safetensors"))]
        segments = [Segment(turn.speaker, turn.text, codes=turn.codes) for turn in found]
        voices = sum(turn.kind == "voice" for turn in found)
        dialogue = cls(generator, None, segments[:voices])
        for segment in segments[voices:]:
            dialogue.conversation.hear(segment)
        for turn, place in zip(found, dialogue.conversation.turns, strict=True):
            turn.turn = place
        dialogue.turns, dialogue.folder = found, folder
        return dialogue


def _read(file: Path) -> DialogueTurn:
    with safe_open(file, "pt") as content:
        about, codes = content.metadata(), content.get_tensor("codes").to(torch.int64)
    number, speaker = int(file.stem), int(about["speaker"])
    return DialogueTurn(number, about["kind"], speaker, about["text"], codes, about["ended"] or None)


class Dialogues:
    """All conversations that are kept; those used last are in memory."""

    def __init__(self, generator: Generator, settings: Settings) -> None:
        self.generator, self.limits = generator, settings.limits
        self.folder = settings.data / "conversations"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What a server that was killed had begun to write or to delete.
        half = [path for path in self.folder.glob("conv_*") if not (path / "conversation.json").is_file()]
        for unfinished in [*half, *self.folder.glob("*.deleted"), *self.folder.glob("*/*.partial")]:
            remove(unfinished)
        self._loaded: OrderedDict[str, Dialogue] = OrderedDict()

    def ids(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("conv_*/conversation.json"))

    def create(self, voices: Sequence[Segment], heard: Sequence[Segment]) -> tuple[str, Dialogue]:
        """Raises ValueError for a turn that cannot be read, ApiError if there are too many."""
        if len(self.ids()) >= self.limits.conversations:
            message = f"there are {self.limits.conversations} conversations, the most; delete some"
            raise ApiError(409, message, code="too_many_conversations")
        name = f"conv_{secrets.token_hex(12)}"
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        try:
            dialogue = Dialogue(self.generator, folder, voices)
            for segment in heard:
                dialogue.hear(segment)
            about = json.dumps({"created": int(time.time()), "codec": self.generator.codec.identity})
            write_atomically(folder / "conversation.json", lambda file: file.write_text(about))
        except BaseException:
            remove(folder)
            raise
        self._keep(name, dialogue)
        return name, dialogue

    def get(self, name: str) -> Dialogue:
        """Raises ApiError 404 if there is none of this name, and 409 if its codes are another codec's."""
        dialogue = self._loaded.get(name)
        if dialogue is None:
            if self.foreign(name):
                message = "this conversation was made with another codec than this server's; begin a new one"
                raise ApiError(409, message, "session_id", "conversation_of_another_codec")
            dialogue = Dialogue.restored(self.generator, self._existing(name))
        self._keep(name, dialogue)
        return dialogue

    def holds(self, name: str, dialogue: Dialogue) -> bool:
        """Whether `dialogue` still is the one of this name: it may have been deleted, or loaded anew."""
        return self._loaded.get(name) is dialogue

    def created(self, name: str) -> int:
        return self._about(name)["created"]

    def foreign(self, name: str) -> bool:
        """Whether its codes are another codec's. Raises ApiError 404 if there is none of this name."""
        return self._about(name)["codec"] != self.generator.codec.identity

    def delete(self, name: str) -> None:
        folder = self._existing(name)
        gone = folder.with_name(f"{name}.deleted")
        folder.rename(gone)
        self._loaded.pop(name, None)
        remove(gone)
        sync(self.folder)

    def _about(self, name: str) -> dict[str, Any]:
        return json.loads((self._existing(name) / "conversation.json").read_text())

    def _existing(self, name: str) -> Path:
        folder = self.folder / name
        if not _ID.fullmatch(name) or not (folder / "conversation.json").is_file():
            raise ApiError(
                404,
                "there is no such conversation; POST /v1/conversations begins one",
                "session_id",
                "conversation_not_found",
            )
        return folder

    def _keep(self, name: str, dialogue: Dialogue) -> None:
        self._loaded[name] = dialogue
        self._loaded.move_to_end(name)
        idle = [other for other, one in self._loaded.items() if not one.lock.locked() and other != name]
        for other in idle[: max(0, len(self._loaded) - self.limits.loaded)]:
            del self._loaded[other]
