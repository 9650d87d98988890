"""Conversion of message lists, as transformers' chat templates take them, to segments.

[{"role": "0", "content": [{"type": "text", "text": "Hello."}, {"type": "audio", "path": "hello.wav"}]}, ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from csm.audio import as_audio, load_audio
from csm.inference.segments import Segment


def segments_from_messages(messages: Sequence[Mapping[str, Any]], sample_rate: int) -> list[Segment]:
    """One segment for each message, with audio at `sample_rate`.

    A message has a speaker number as its role and as content one text, then one audio: under "path" (or "url") a local
    file, which is resampled, or under "audio" such a path or samples `[num_samples]` at `sample_rate`. The last
    message may lack audio: it is the one to be spoken. Raises ValueError naming the message that is otherwise, or whose
    audio cannot be read.
    """
    segments = []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise ValueError(f'{where} is a {type(message).__name__}; it must be a mapping with "role" and "content"')
        role, content = str(message.get("role", "")), message.get("content")
        if not role.isdecimal():
            raise ValueError(f'{where}: its role is {role!r}; it must be a speaker number such as "0"')
        if not isinstance(content, Sequence) or isinstance(content, str) or not content:
            raise ValueError(f'{where}: its content must be a list that begins with {{"type": "text", "text": ...}}')
        kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in content]
        last = number == len(messages) - 1
        if kinds != ["text", "audio"] and not (last and kinds == ["text"]):
            raise ValueError(f"{where}: its content is {kinds}; it must be one text, then one audio")
        text = content[0].get("text")
        if not isinstance(text, str):
            raise ValueError(f'{where}: its text is {text!r}; it must be a string under "text"')
        try:
            audio = _load(content[1], sample_rate) if len(content) == 2 else None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        segments.append(Segment(int(role), text, audio))
    return segments


def _load(part: Mapping[str, Any], sample_rate: int) -> Tensor:
    source = next((part[key] for key in ("audio", "path", "url") if part.get(key) is not None), None)
    if source is None:
        raise ValueError('its audio has neither "path" nor "audio"')
    if isinstance(source, (str, Path)):
        return load_audio(source, sample_rate)
    audio = as_audio(source)
    if not len(audio):
        raise ValueError("its audio must be mono samples, at least one")
    return audio
