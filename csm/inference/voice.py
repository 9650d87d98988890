"""A voice: a few turns of one speaker as codes, which come first in every context, so that the voice stays the same.

    voice = Voice.load("voices/anna.safetensors")
    conversation = Conversation(generator, voice.segments(generator, speaker=0))     # pinned, whatever is dropped
    generator.generate("Hello.", 0, context=[*voice.segments(generator, 0), *history])

Codes are those of one codec, and mean nothing to another: a voice knows its codec and refuses others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csm.codec import Codec, CodecInfo, check_same_codec
from csm.files import write_tensors
from csm.inference.generator import Generator
from csm.inference.segments import Segment
from csm.judges.speaker import SpeakerEmbedder, cosine

FOLDER = Path("voices")
"""Where `csm voice make` keeps voices, and where they are looked for by name."""
SUFFIX = ".safetensors"
_KEY, _FORMAT = "csm_voice", 1


@dataclass(frozen=True)
class Voice:
    """Turns of one speaker.

    texts: of each turn; codes: int64 [K, T] of each; codec: that made the codes
    """

    name: str
    texts: list[str]
    codes: list[Tensor]
    codec: CodecInfo

    @property
    def seconds(self) -> float:
        return sum(codes.shape[1] for codes in self.codes) / self.codec.frame_rate

    def segments(self, generator: Generator, speaker: int) -> list[Segment]:
        """The turns as context, said by `speaker`. Raises ValueError if the generator has another codec."""
        check_same_codec(self.codec, generator.codec.info, f"voice {self.name} and the model")
        return [Segment(speaker, text, codes=codes) for text, codes in zip(self.texts, self.codes, strict=True)]

    def save(self, path: Path) -> None:
        """Writes one file, NAME.safetensors; it appears when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"format": _FORMAT, "name": self.name, "texts": self.texts, "codec": self.codec.to_dict()}
        tensors = {f"turn_{number:03d}": codes.to(torch.int16) for number, codes in enumerate(self.codes)}
        metadata = {_KEY: json.dumps(record, ensure_ascii=False)}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Voice:
        """Raises FileNotFoundError or ValueError, naming the file, if there is no voice in it."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"voice {path} does not exist; `csm voice make` makes one, `csm voice list` lists them"
            )
        try:
            with safe_open(path, "pt") as file:
                record = json.loads(file.metadata()[_KEY])
                if record["format"] != _FORMAT:
                    raise ValueError(f"format {record['format']}, this program reads {_FORMAT}")
                codes = [file.get_tensor(f"turn_{number:03d}").long() for number in range(len(record["texts"]))]
                return cls(record["name"], record["texts"], codes, CodecInfo.from_dict(record["codec"]))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: cannot be read as a voice ({error}); make it again with `csm voice make`"
            ) from error


def find_voice(name_or_path: str) -> Voice:
    """The voice of a file, or the one of a name in `FOLDER`. Raises what `Voice.load` raises."""
    path = Path(name_or_path)
    if not path.is_file() and path.name == name_or_path and path.suffix != SUFFIX:
        path = FOLDER / f"{name_or_path}{SUFFIX}"
    return Voice.load(path)


def make_voice(
    name: str,
    turns: Sequence[Segment],
    codec: Codec,
    seconds: float = 15.0,
    embedder: SpeakerEmbedder | None = None,
) -> Voice:
    """A voice of recorded turns (with `audio` at the codec's rate), in their order, of `seconds` at most, but of one
    turn at least.

    embedder: the turns that are most like all others are taken, see `most_typical`; None: the first ones
    Raises ValueError if there is no turn with enough speech, or turns of several speakers.
    """
    if not turns:
        raise ValueError(f"voice {name}: there are no turns to make it of")
    if len({turn.speaker for turn in turns}) > 1:
        raise ValueError(f"voice {name}: the turns are of several speakers; give those of one")
    audios = [turn.audio for turn in turns if turn.audio is not None]
    assert len(audios) == len(turns), "recorded turns have audio"
    order = list(range(len(turns))) if embedder is None else most_typical(audios, codec.sample_rate, embedder)
    if not order:
        raise ValueError(f"voice {name}: no turn holds enough speech to tell its voice; give longer ones")
    chosen, total = order[:1], len(audios[order[0]]) / codec.sample_rate
    for number in order[1:]:
        length = len(audios[number]) / codec.sample_rate
        if total + length <= seconds:
            chosen.append(number)
            total += length
    chosen.sort()
    codes = [codec.encode(audios[number][None, None].to(codec.device))[0].cpu() for number in chosen]
    return Voice(name, [turns[number].text for number in chosen], codes, codec.info)


def most_typical(audios: Sequence[Tensor], sample_rate: int, embedder: SpeakerEmbedder) -> list[int]:
    """Numbers of recordings, float32 [N] each, by their mean similarity to the others, the highest first; without those
    that hold too little speech for an embedding."""
    embedded = {number: embedder.embed(audio, sample_rate) for number, audio in enumerate(audios)}
    voices = {number: voice for number, voice in embedded.items() if voice is not None}

    def similarity(number: int) -> float:
        return sum(cosine(voices[number], voice) for other, voice in voices.items() if other != number)

    return sorted(voices, key=similarity, reverse=True)
