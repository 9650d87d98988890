"""POST, GET and DELETE /v1/conversations, and the turns that others said."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter

from csm.serving.dialogues import Dialogue, DialogueTurn
from csm.serving.errors import invalid
from csm.serving.prompting import check_length, segments_of, voices_of
from csm.serving.schemas import ContextTurn, ConversationBody
from csm.serving.service import Service


def conversation_routes(service: Service) -> APIRouter:
    router = APIRouter()

    def public(name: str, dialogue: Dialogue) -> dict[str, Any]:
        rate = dialogue.generator.codec.frame_rate
        return {
            "id": name,
            "object": "conversation",
            "created": service.loaded.dialogues.created(name),
            "turns": [turn.public(rate) for turn in dialogue.turns],
        }

    @router.post("/v1/conversations", status_code=201)
    async def begun(body: ConversationBody) -> dict[str, Any]:
        dialogues = service.model.dialogues
        if len(body.voices) > service.limits.context_turns:
            message = f"voices: has {len(body.voices)}; at most {service.limits.context_turns} are taken"
            raise invalid(message, "voices")
        voices = voices_of(service, body.voices)
        check_length(service, voices, "voices", "the voices")
        heard = await segments_of(service, body.turns, "turns")
        check_length(service, [*voices, *heard], "turns", "voices and turns")
        try:
            name, dialogue = await service.prepare(dialogues.create, voices, heard)
        except ValueError as error:
            raise invalid(str(error)) from error
        return public(name, dialogue)

    @router.get("/v1/conversations")
    async def listed() -> dict[str, Any]:
        dialogues = service.model.dialogues
        return {"object": "list", "data": [{"id": name, "object": "conversation"} for name in dialogues.ids()]}

    @router.get("/v1/conversations/{name}")
    async def one(name: str) -> dict[str, Any]:
        service.check_open()
        with ExitStack() as held:
            dialogue = await service.lock_dialogue(name)
            held.callback(dialogue.lock.release)
            return public(name, dialogue)

    @router.post("/v1/conversations/{name}/turns", status_code=201)
    async def heard(name: str, body: ContextTurn) -> dict[str, Any]:
        """A turn that somebody else said."""
        rate = service.model.generator.codec.frame_rate
        segments = await segments_of(service, [body], "turns")
        check_length(service, segments, "turns", "the turns")

        def hear() -> list[DialogueTurn]:
            return [dialogue.hear(segment) for segment in segments]

        with ExitStack() as held:
            dialogue = await service.lock_dialogue(name)
            held.callback(dialogue.lock.release)
            dialogue.check_room(service.limits)
            try:
                turns = await service.prepare(hear)
            except ValueError as error:
                raise invalid(str(error), "turns") from error
        return {"object": "list", "data": [turn.public(rate) for turn in turns]}

    @router.delete("/v1/conversations/{name}")
    async def deleted(name: str) -> dict[str, Any]:
        dialogues = service.model.dialogues
        with ExitStack() as held:
            if not await service.prepare(dialogues.foreign, name):  # nobody speaks in one of another codec
                dialogue = await service.lock_dialogue(name)
                held.callback(dialogue.lock.release)
            await service.prepare(dialogues.delete, name)
        return {"id": name, "object": "conversation", "deleted": True}

    return router
