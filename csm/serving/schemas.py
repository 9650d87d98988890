"""Bodies of requests: OpenAI's fields and CSM's own, with their bounds. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from csm.serving.encoders import AudioFormat

MOST_SPEAKERS = 100
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Name = Annotated[str, Field(pattern=NAME)]
"""Of voices, conversations and segments."""
Speaker = Annotated[int, Field(ge=0, lt=MOST_SPEAKERS)]


def _voice_name(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and value.keys() == {"id"} else value


_BY_ID = {"type": "object", "properties": {"id": {"type": "string", "pattern": NAME}}, "required": ["id"]}
VoiceName = Annotated[
    Name,
    BeforeValidator(_voice_name),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": NAME}, _BY_ID]}, mode="validation"),
]
"""OpenAI's clients give a name, or {"id": name}."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ContextTurn(_Body):
    """A turn before the one to be spoken; its sound is one of audio (base64), voice and segment_id."""

    speaker: Speaker | None = None
    text: Text | None = None
    audio: str | None = None
    voice: Name | None = None
    segment_id: Name | None = None


class Sampled(_Body):
    """CSM's own options of a turn."""

    temperature: float = Field(0.9, ge=0, le=10)
    top_k: int = Field(50, ge=0, le=1 << 20)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    guidance: float = Field(1.0, ge=1, le=10)
    max_audio_length_ms: float | None = Field(None, gt=0)
    num_codebooks: int | None = Field(None, ge=1)


class Spoken(Sampled):
    """Fields of OpenAI's speech request that a turn of a batch has as well."""

    input: Text = Field(min_length=1)
    voice: VoiceName | None = None
    speaker: Speaker | None = None
    context: list[ContextTurn] = []
    instructions: Text | None = None
    speed: float = 1.0


class SpeechBody(Spoken):
    """POST /v1/audio/speech. stream: false gives the whole file at once."""

    model: Text
    response_format: AudioFormat = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = True
    session_id: Name | None = None


class BatchBody(_Body):
    """POST /v1/audio/speech/batch."""

    model: Text
    items: list[Spoken] = Field(min_length=1)
    response_format: AudioFormat = "mp3"


class VoiceTurn(_Body):
    voice: Name
    speaker: Speaker | None = None


class ConversationBody(_Body):
    """POST /v1/conversations. voices: stay, whatever turns are dropped."""

    voices: list[VoiceTurn] = []
    turns: list[ContextTurn] = []


class SessionConfig(Sampled):
    """The first message on the WebSocket."""

    type: Literal["session.config"]
    model: Text
    voice: VoiceName | None = None
    speaker: Speaker | None = None
    context: list[ContextTurn] = []
    session_id: Name | None = None
    response_format: AudioFormat = "pcm"


class InputText(_Body):
    """A piece of text."""

    type: Literal["input.text"]
    text: Text


class InputDone(_Body):
    """input.flush: speak all text so far; input.done: and the answer ends with it."""

    type: Literal["input.flush", "input.done"]


class Cancel(_Body):
    """The listener breaks in. answer: the one that is heard, if not the first that is not yet sent, or else the last;
    played_ms: of its audio, as far as it was heard; None: all that was sent."""

    type: Literal["response.cancel"]
    answer: int | None = None
    played_ms: float | None = Field(None, ge=0)


class SessionClose(_Body):
    type: Literal["session.close"]
