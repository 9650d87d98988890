"""GET, POST and DELETE /v1/audio/voices."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Form, UploadFile

from csm.serving.errors import invalid
from csm.serving.schemas import MOST_SPEAKERS, NAME
from csm.serving.service import Service
from csm.serving.voices import Voice

SHORTEST_SECONDS = 0.5


def voice_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/audio/voices")
    async def listed() -> dict[str, Any]:
        voices = service.model.voices
        named = [Voice("speaker_0", 0), Voice("speaker_1", 1), *voices.own.values(), *voices.uploaded.values()]
        return {
            "object": "list",
            "data": [voice.public for voice in named],
            "voices": [voice.name for voice in named],
            "uploaded_voices": sorted(voices.uploaded),
        }

    @router.post("/v1/audio/voices", status_code=201)
    async def added(
        audio_sample: UploadFile,
        name: Annotated[str, Form()],
        ref_text: Annotated[str, Form()],
        consent: Annotated[str, Form()],
        speaker: Annotated[int, Form(ge=0, lt=MOST_SPEAKERS)] = 0,
    ) -> dict[str, Any]:
        """A recording, what is said in it, and a statement that its speaker agrees."""
        voices, rate = service.model.voices, service.model.generator.sample_rate
        if not re.fullmatch(NAME, name):
            raise invalid("name: must be up to 64 letters, digits, hyphens and underscores", "name")
        voices.check_new(name, ref_text, consent)
        audio = await service.uploads.decode(await audio_sample.read(), rate, "audio_sample")
        if len(audio) < SHORTEST_SECONDS * rate:
            raise invalid(f"audio_sample: is shorter than {SHORTEST_SECONDS:g} s", "audio_sample", "invalid_audio")

        def add() -> Voice:
            voices.check_new(name, ref_text, consent)  # another request may have added it meanwhile
            return voices.add(name, speaker, ref_text, consent, audio)

        return (await service.prepare(add)).public

    @router.delete("/v1/audio/voices/{name}")
    async def deleted(name: str) -> dict[str, Any]:
        await service.prepare(service.model.voices.delete, name)
        return {"id": name, "object": "voice", "deleted": True}

    return router
