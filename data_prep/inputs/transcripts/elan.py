"""ELAN's .eaf: time-aligned tiers, each of one participant. Tiers below others (translations, glosses) are not text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from data_prep.inputs.transcripts.words import numbered
from data_prep.records import GivenTurn

_REFERENCE = re.compile(r"[\w.:-]*\d[\w.:-]*")  # a number of a line, "story_001", which some tiers hold


def parse_elan(text: str) -> list[GivenTurn]:
    """Turns of the tiers that have no parent; the participant, or else the tier's name, is the speaker.

    Raises ValueError if it is no such file, or if it cannot be told which of its tiers is what a participant says.
    """
    try:
        # the parser takes text only without the declaration of an encoding
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise ValueError(f"not an ELAN annotation ({error})") from error
    times = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    tiers: dict[str, tuple[str, list[GivenTurn]]] = {}  # speaker -> name of the tier, turns
    for tier in root.iter("TIER"):
        name = tier.get("TIER_ID") or ""
        speaker = (tier.get("PARTICIPANT") or name).strip()
        turns = [] if tier.get("PARENT_REF") else _turns(tier, speaker, times)
        if not turns:
            continue
        if speaker in tiers:
            raise ValueError(
                f"tiers {tiers[speaker][0]!r} and {name!r} are both of {speaker!r}: keep the one that is spoken, or "
                "export that as TextGrid"
            )
        if all(_REFERENCE.fullmatch(turn.text or "") for turn in turns):
            raise ValueError(f"tier {name!r} holds numbers of lines, not what is said: export its text as TextGrid")
        tiers[speaker] = (name, turns)
    if not tiers:
        raise ValueError("holds no time-aligned annotations with text")
    return numbered([turn for _, turns in tiers.values() for turn in turns])


def _turns(tier: ElementTree.Element, speaker: str, times: dict[str | None, str | None]) -> list[GivenTurn]:
    turns = []
    for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
        text = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
        start, end = (times.get(annotation.get(slot)) for slot in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"))
        if not text:
            continue
        if start is None or end is None or not (start.isdigit() and end.isdigit()):
            raise ValueError(f"annotation {text[:40]!r} of tier {tier.get('TIER_ID')!r} has no times")
        turns.append(GivenTurn(0, speaker, int(start) / 1000, int(end) / 1000, text))
    return turns
