"""Voices of turns: whether both halves of a turn are one voice, and whether it is that of the speaker's other turns.

A low similarity of the halves is another voice at the beginning or end of a turn; a low similarity to the other turns
is a turn of somebody else. Both are cosines of speaker embeddings, whose scale belongs to the encoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csm.judges.speaker import SpeakerEmbedder, cosine
from data_prep.audio.recording import RecordingAudio
from data_prep.records import MODEL_RATE, DraftTurn

HALVES_SECONDS = 4.0
"""Turns from this length on are divided: an embedding of less than 2 s varies more than voices differ."""

OTHERS_SECONDS = 4.0
"""A speaker's other turns are compared with if there is at least so much of them."""


@dataclass
class VoiceMatch:
    """Cosines of a turn; None: there is too little speech to compare."""

    halves: float | None
    to_speaker: float | None


def match_voices(embedder: SpeakerEmbedder, audio: RecordingAudio, turns: Sequence[DraftTurn]) -> dict[int, VoiceMatch]:
    """Number of a turn -> its similarities, for all turns of a recording.

    The other turns of a speaker are the mean of their embeddings, weighted by their seconds.
    """
    found: dict[int, VoiceMatch] = {}
    voices: dict[str, list[tuple[DraftTurn, Tensor]]] = defaultdict(list)
    for turn in turns:
        parts = [embedder.embed(part, MODEL_RATE) for part in _parts(audio, turn)]
        known = [part for part in parts if part is not None]
        found[turn.number] = VoiceMatch(cosine(*known) if len(known) == 2 else None, None)
        if known:
            voices[turn.speaker].append((turn, normalize(torch.stack(known).sum(dim=0), dim=0)))
    for of_speaker in voices.values():
        total = torch.stack([voice * (turn.end - turn.start) for turn, voice in of_speaker]).sum(dim=0)
        seconds = sum(turn.end - turn.start for turn, _ in of_speaker)
        for turn, voice in of_speaker:
            length = turn.end - turn.start
            if seconds - length >= OTHERS_SECONDS:
                found[turn.number].to_speaker = cosine(voice, normalize(total - voice * length, dim=0))
    return found


def _parts(audio: RecordingAudio, turn: DraftTurn) -> list[Tensor]:
    """The halves of a turn, or a short turn as a whole: float32 [N], 16 kHz."""
    samples = torch.from_numpy(audio.track(turn.channel, MODEL_RATE, turn.start, turn.end))
    if turn.end - turn.start < HALVES_SECONDS:
        return [samples]
    middle = len(samples) // 2
    return [samples[:middle], samples[middle:]]
