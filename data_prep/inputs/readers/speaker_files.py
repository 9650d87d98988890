"""Conversations with an audio file for each speaker: they become one recording with a channel for each.

    V00_S0644_I00000129_P0799.wav, .json                  Seamless Interaction: participants P...
    <task>/speaker_1_audio.wav, speaker_1_annotation_a.srt  TurnBench: the first annotator is used
    call_spk1.flac, call_spk1.json; call-agent.wav, call-agent.srt; ...

Files belong together if their names differ by the speaker alone. An annotation is a file that begins with the name of
the speaker's audio file (without `_audio`), or one named as the conversation, whose speakers are those of the files.
With format=speakers, any letter or number at the end of the name is a speaker (call_A.wav, call_B.wav, track_1.wav).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from data_prep.inputs.kinds import is_audio, suffix_of
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.inputs.side_files import SIDE_SUFFIXES, parse_side_file
from data_prep.inputs.transcripts.annotation import Annotation
from data_prep.inputs.transcripts.json_text import languages
from data_prep.inputs.transcripts.words import numbered
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator, Made, Rejection

_ROLES = "user|assistant|agent|customer|caller|callee|client|host|guest|interviewer|interviewee|left|right|moderator"
_SEAMLESS = re.compile(r"(?P<conversation>V\d+_S\d+_I\d+)_(?P<speaker>P\d+[A-Z]?)")
_KIND = r"(?:[-_ ](?:audio|track|mic|channel|mono))?"
_SURE = re.compile(
    rf"(?P<conversation>.*?)[-_. ]?(?P<speaker>(?:speaker|spk)[-_ ]?(?:\d+|[A-Za-z])|{_ROLES}){_KIND}", re.IGNORECASE
)
_ASKED = re.compile(
    rf"(?P<conversation>.*?)[-_. ]?(?P<speaker>(?:participant|channel|track|ch|mic)?[-_ ]?(?:\d+|[A-Za-z])){_KIND}",
    re.IGNORECASE,
)
_MOST = 8
"""Files of a conversation that is found by itself; more are voices that have nothing to do with each other."""
_MIX = re.compile(r"[-_. ]?(?:combined|mix|mixed|stereo|both|full|conversation)(?:[-_ ]audio)?", re.IGNORECASE)
_TAIL = re.compile(r"[-_ ](?:audio|track|mic|channel|mono)$", re.IGNORECASE)


@dataclass
class _Conversation:
    folder: str
    name: str  # "" if the folder is the conversation
    audio: dict[str, str]  # speaker -> name of the audio file, sorted

    @property
    def id(self) -> str:
        return "/".join(part for part in (self.folder, self.name) if part) or next(iter(self.audio.values()))


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each conversation, with the turns of all speakers' annotations, each on its channel."""
    conversations = _conversations(pile)
    in_folder = pile.by_folder() if conversations else {}
    for conversation in conversations:
        beside = in_folder[conversation.folder]
        pile.take(conversation.audio.values())
        _put_mix_aside(pile, conversation, beside)
        turns: list[GivenTurn] = []
        annotations: list[Annotation] = []
        bare, problem = [], None
        for channel, (speaker, audio) in enumerate(conversation.audio.items()):
            found = _own_annotation(pile, audio, beside)
            if isinstance(found, str):
                problem = found
            elif found is None:
                bare.append(audio)
            else:
                annotations.append(found)
                turns += [
                    replace(turn, speaker=speaker, channel=channel, speaker_id=None) for turn in found.turns or []
                ]
        if problem is None and not turns:
            found = _common_annotation(pile, conversation)
            if isinstance(found, str):
                problem = found
            elif found is not None:
                annotations, turns, bare = [found], found.turns or [], []
        groups, splits = ({getattr(a, name) for a in annotations} - {None} for name in ("group", "split"))
        for kind, values in (("groups", groups), ("splits", splits)):
            if problem is None and len(values) > 1:
                problem = f"its speakers' annotations give it several {kind}: {', '.join(sorted(values))}"
        if problem is not None:
            yield Rejection(audio=conversation.id, reason=Reason.bad_annotation, message=problem)
            continue
        if turns:
            for audio in bare:
                pile.notes.not_used("files of speakers without an annotation, whose speech is not used", audio)
        paths = [pile.path(name) for name in conversation.audio.values()]
        yield Entry(
            audio=conversation.id,
            locator=Locator(paths[0], made=Made(paths)),
            id=conversation.id,
            turns=numbered(turns) if turns else None,
            group=next(iter(groups), None),
            split=next(iter(splits), None),
            lang=languages(annotation.lang for annotation in annotations),
            dnsmos=min((a.dnsmos for a in annotations if a.dnsmos is not None), default=None),
            two_channel="yes" if len(paths) == 2 else None,
        )


def _conversations(pile: Pile) -> list[_Conversation]:
    patterns = [_SEAMLESS, _SURE, *([_ASKED] if pile.asked else [])]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in sorted(pile.audio):
        stem = PurePosixPath(name).stem
        match = next((match for pattern in patterns if (match := pattern.fullmatch(stem))), None)
        if match:
            key = (name.rpartition("/")[0], match["conversation"])
            found.setdefault(key, {}).setdefault(match["speaker"], name)
    several = {key: audio for key, audio in found.items() if len(audio) > 1 and (pile.asked or len(audio) <= _MOST)}
    return [_Conversation(*key, audio) for key, audio in sorted(several.items())]


def _put_mix_aside(pile: Pile, conversation: _Conversation, beside: list[str]) -> None:
    for name in filter(is_audio, beside):
        stem = PurePosixPath(name).stem
        if name in pile.left and stem.startswith(conversation.name) and _MIX.fullmatch(stem[len(conversation.name) :]):
            pile.take([name])
            pile.notes.put_aside([name], "mix of the speakers' own files")


def _own_annotation(pile: Pile, audio: str, beside: list[str]) -> Annotation | str | None:
    """A speaker's annotation, with turns; a str says what is wrong with it; None: there is none."""
    base = _TAIL.sub("", str(PurePosixPath(audio).with_suffix("")))
    names = [name for name in beside if name in pile.left and _belongs(name, base)]
    names.sort(key=lambda name: (SIDE_SUFFIXES.index(suffix_of(name)), name))
    for number, name in enumerate(names):
        pile.take([name])
        found = _parse(pile, name, PurePosixPath(audio).stem)
        if isinstance(found, str) or found.turns is not None:
            pile.take(names)
            pile.notes.put_aside(names[number + 1 :], "further annotations of the same speaker")
            return found
        pile.notes.put_aside([name], f"{suffix_of(name)} (neither turns nor a text in it)")
    return None


def _belongs(name: str, base: str) -> bool:
    return suffix_of(name) in SIDE_SUFFIXES and name.startswith(base) and not name[len(base)].isalnum()


def _common_annotation(pile: Pile, conversation: _Conversation) -> Annotation | str | None:
    """The annotation of the whole conversation, with turns; its speakers must be those of the files."""
    for suffix in SIDE_SUFFIXES:
        name = f"{conversation.id}{suffix}"
        if name not in pile.left:
            continue
        pile.take([name])
        found = _parse(pile, name, PurePosixPath(conversation.id).name)
        if isinstance(found, str) or not found.turns:
            return found if isinstance(found, str) else None
        speakers = [speaker.lower() for speaker in conversation.audio]
        for turn in found.turns:
            if turn.speaker.lower() in speakers:
                turn.channel = speakers.index(turn.speaker.lower())
            elif turn.channel is None:
                return f"{name}: speaker {turn.speaker!r} is none of the files' {', '.join(conversation.audio)}"
        return found
    return None


def _parse(pile: Pile, name: str, stem: str) -> Annotation | str:
    try:
        return parse_side_file(suffix_of(name), pile.text(name).encode(), stem)
    except ValueError as error:
        return str(error) if name in str(error) else f"{name}: {error}"
