"""Conversations as transformers' chat templates take them, turned into segments.

[{"role": "0", "content": [{"type": "text", "text": "Hello."}, {"type": "audio", "path": "hello.wav"}]}, ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.audio import load_audio
from csm.inference.generator import Segment


def segments_from_messages(messages: Sequence[Mapping[str, Any]], sample_rate: int) -> list[Segment]:
    """One segment for each message, with audio at `sample_rate`.

    A message has a speaker number as its role and as content one text, then one audio: under "path" (or "url") a local
    file, which is resampled, or under "audio" such a path or samples `[num_samples]` at `sample_rate`. The last
    message may lack audio: it is the one to be spoken. Raises ValueError naming the message that is otherwise.
    """
    segments = []
    for number, message in enumerate(messages):
        where = f"message {number}"
        role, content = str(message.get("role", "")), message.get("content")
        if not role.isdigit():
            raise ValueError(f'{where}: its role is {role!r}; it must be a speaker number such as "0"')
        if not isinstance(content, Sequence) or isinstance(content, str) or not content:
            raise ValueError(f'{where}: its content must be a list that begins with {{"type": "text", "text": ...}}')
        kinds = [part.get("type") for part in content]
        last = number == len(messages) - 1
        if kinds != ["text", "audio"] and not (last and kinds == ["text"]):
            raise ValueError(f"{where}: its content is {kinds}; it must be one text, then one audio")
        audio = _samples(content[1], sample_rate, where) if len(content) == 2 else None
        segments.append(Segment(int(role), content[0]["text"], audio))
    return segments


def _samples(part: Mapping[str, Any], sample_rate: int, where: str) -> Tensor:
    source = next((part[key] for key in ("audio", "path", "url") if part.get(key) is not None), None)
    if source is None:
        raise ValueError(f'{where}: its audio has neither "path" nor "audio"')
    if isinstance(source, (str, Path)):
        return load_audio(Path(source), sample_rate)
    audio = torch.as_tensor(source, dtype=torch.float32)
    if audio.ndim != 1:
        raise ValueError(f"{where}: its audio must be mono, shape [num_samples]; got {tuple(audio.shape)}")
    return audio
