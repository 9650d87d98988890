"""From the fields of a request to a speaker and the turns before: voices, recordings and earlier answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from csm.inference.segments import Segment
from csm.serving.dialogues import Dialogue
from csm.serving.errors import ApiError, invalid
from csm.serving.schemas import ContextTurn, Sampled, VoiceTurn
from csm.serving.service import Service
from csm.serving.speech import Options


def check_model(service: Service, name: str) -> None:
    """Raises ApiError unless a request may begin now, with the model of this name."""
    service.check_open()
    if name not in service.settings.names:
        served = ", ".join(service.settings.names)
        raise ApiError(404, f"model: this server has {served}", "model", "model_not_found")


def check_unsupported(instructions: str | None, speed: float, param: str = "") -> None:
    """Refuses by name what a model of this kind cannot do."""
    if instructions and instructions.strip():
        message = "instructions: the model takes none; its style comes from voice and context"
        raise invalid(message, f"{param}instructions", "unsupported_parameter")
    if speed != 1.0:
        message = f"speed={speed:g}: the model speaks at its own speed; only 1 is taken"
        raise invalid(message, f"{param}speed", "unsupported_parameter")


def options_of(service: Service, body: Sampled, speaker: int, param: str = "") -> Options:
    generator, most = service.loaded.generator, 1000 * service.limits.audio
    codebooks = generator.engine.num_codebooks
    if body.num_codebooks not in (None, codebooks):
        message = f"num_codebooks={body.num_codebooks}: this server generates {codebooks}, as it was started"
        raise invalid(message, f"{param}num_codebooks", "unsupported_parameter")
    length = most if body.max_audio_length_ms is None else body.max_audio_length_ms
    frame_ms = 1000 / generator.codec.frame_rate
    if not frame_ms <= length <= most:
        message = f"max_audio_length_ms={length:g}: must lie in {frame_ms:g}..{most:g}"
        raise invalid(message, f"{param}max_audio_length_ms")
    if body.guidance > 1 and len(generator.engine.slots) < 2:
        message = f"guidance={body.guidance:g}: needs two slots, and this server was started with one"
        raise invalid(message, f"{param}guidance", "unsupported_parameter")
    return Options(speaker, body.temperature, body.top_k, body.guidance, body.seed, length)


async def context_of(
    service: Service,
    voice: str | None,
    speaker: int | None,
    context: Sequence[ContextTurn],
    param: str = "",
) -> tuple[int, list[Segment]]:
    """The number that speaks, and the segments before it: the voice's recording, then the context."""
    found = None if voice is None else service.loaded.voices.get(voice, f"{param}voice")
    number = speaker if speaker is not None else found.speaker if found is not None else 0
    recording = found.context(number) if found is not None else []
    segments = [*recording, *await segments_of(service, context, f"{param}context")]
    check_length(service, segments, f"{param}context", "voice and context")
    return number, segments


def check_length(service: Service, segments: Sequence[Segment], param: str, what: str) -> None:
    """Raises ApiError unless the model can read all segments and a frame more.

    Said before they are encoded: an hour of audio that is then refused would keep all other requests waiting.
    """
    generator = service.loaded.generator
    positions, most = sum(map(generator.segment_positions, segments)), generator.model.config.max_seq_len
    if positions >= most:
        rate = generator.codec.frame_rate
        seconds = sum(map(generator.segment_frames, segments)) / rate
        message = (
            f"{param}: {what} last {seconds:.0f} s and take {positions} positions with their text; the model reads "
            f"{most}, of {1000 / rate:g} ms of audio or a token of text: give shorter ones"
        )
        raise invalid(message, param, "context_too_long")


def speaker_in(service: Service, dialogue: Dialogue, voice: str | None, speaker: int | None) -> int:
    """The number that speaks in a conversation, whose voices were given when it began."""
    if voice is None:
        return speaker or 0
    found = service.loaded.voices.get(voice, "voice")
    if not found.turns:
        return found.speaker if speaker is None else speaker
    known = [turn.speaker for turn in dialogue.turns if turn.kind == "voice" and turn.text == found.turns[0].text]
    if not known:
        raise invalid(f"voice: {voice!r} is not a voice of this conversation; begin one with it", "voice")
    if speaker not in (None, *known):
        raise invalid(f"speaker: in this conversation {voice!r} speaks as {known[0]}", "speaker")
    return known[0] if speaker is None else speaker


def voices_of(service: Service, voices: Sequence[VoiceTurn]) -> list[Segment]:
    segments = []
    for number, turn in enumerate(voices):
        voice = service.loaded.voices.get(turn.voice, f"voices.{number}.voice")
        segments += voice.context(voice.speaker if turn.speaker is None else turn.speaker)
    return segments


async def segments_of(service: Service, turns: Sequence[ContextTurn], param: str) -> list[Segment]:
    """Segments of turns that clients give. Raises ApiError, naming the turn, for one that cannot be read."""
    if len(turns) > service.limits.context_turns:
        raise invalid(f"{param}: has {len(turns)} turns; at most {service.limits.context_turns} are taken", param)
    segments: list[Segment] = []
    for number, turn in enumerate(turns):
        segments += await _segments(service, turn, f"{param}.{number}")
    return segments


async def _segments(service: Service, turn: ContextTurn, param: str) -> list[Segment]:
    sources = [name for name in ("audio", "voice", "segment_id") if getattr(turn, name) is not None]
    if len(sources) != 1:
        raise invalid(f"{param}: needs one of audio, voice and segment_id, has {sources or 'none'}", param)
    if turn.audio is not None:
        if turn.text is None or not turn.text.strip() or len(turn.text) > service.limits.text:
            raise invalid(f"{param}.text: must be what is said in the audio", f"{param}.text")
        data = service.uploads.bytes_of(turn.audio, f"{param}.audio")
        audio = await service.uploads.decode(data, service.loaded.generator.sample_rate, f"{param}.audio")
        return [Segment(turn.speaker or 0, turn.text, audio)]
    if turn.text is not None:
        raise invalid(f"{param}.text: comes with the {sources[0]}; leave it out", f"{param}.text")
    if turn.voice is not None:
        voice = service.loaded.voices.get(turn.voice, f"{param}.voice")
        return voice.context(voice.speaker if turn.speaker is None else turn.speaker)
    assert turn.segment_id is not None
    kept = service.segments(turn.segment_id, f"{param}.segment_id")
    return [one if turn.speaker is None else replace(one, speaker=turn.speaker) for one in kept]
