"""JSON transcripts, told apart by their keys.

    turns                our own, as in a manifest
    alignments           moshi-finetune: [["word", [start, end], "SPEAKER_MAIN"], ...], the left channel's words
    results              Deepgram: utterances, or words of each channel
    metadata:transcript  Seamless Interaction: segments of one speaker, with words
    segments             Whisper, whisperX and alike: start, end, text, and a speaker or none
    utterances           the same under another name
    words                words with times
    a list               segments with start, end, text
    text                 one turn over the whole recording (also transcript, sentence, ...): Emilia, WebDataset

`group`, `split`, `speaker`, `language` and `dnsmos` are used beside them; other keys are not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from csm.languages import language_code
from data_prep.inputs.manifest import parse_group, parse_split, parse_turns
from data_prep.inputs.transcripts.annotation import Annotation
from data_prep.inputs.transcripts.subtitles import ONE
from data_prep.inputs.transcripts.words import SaidWord, numbered, turns_of_words
from data_prep.records import GivenTurn

TEXT_KEYS = ("text", "transcript", "transcription", "sentence", "normalized_text")
LANGUAGE_KEYS = ("language", "lang", "locale", "language_code", "detected_language")
SPEAKER_KEYS = ("speaker", "speaker_id", "speaker_label", "spk", "spk_id")
_WORD_KEYS = ("punctuated_word", "word", "text", "w")
_START_KEYS = ("start", "begin", "start_time", "startTime", "offset", "from")
_END_KEYS = ("end", "stop", "end_time", "endTime", "to")

ONE_SPEAKER = "transcripts that name no speaker: taken as one speaker each"
ONE_CHANNEL = "alignments of the left channel alone: the right channel has no text and is not used"


def parse_json(text: str) -> Annotation:
    """Raises ValueError for JSON that is damaged, or that looks like a transcript and is not one."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if isinstance(record, list) and record and all(isinstance(part, dict) for part in record):
        return _of_segments(record, "the list")
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    found = _turns(record)
    found.group, found.split = parse_group(record, "it"), parse_split(record, "it")
    found.lang = language(record) or found.lang
    quality = record.get("dnsmos")
    found.dnsmos = float(quality) if isinstance(quality, (int, float)) and not isinstance(quality, bool) else None
    return found


def language(record: dict[str, Any]) -> str | None:
    """The language a record gives, as a code ("en" for "eng", "en-US", "English"); None if it gives none.

    A code of two or three letters that is not known is kept, and so is what is no code ("Klingon", a number), which
    inputs/sources.py tells the user.
    """
    value = next((record[key] for key in LANGUAGE_KEYS if record.get(key) not in (None, "")), None)
    if value is None:
        return None
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    try:
        return language_code(value)
    except ValueError:
        code = value.replace("_", "-").split("-")[0].lower()
        return code if 2 <= len(code) <= 3 else value


def language_of_all(records: Iterable[dict[str, Any]]) -> str | None:
    """The language of records of one recording: a code, or several ("de, fr"); None if they give none."""
    return languages(language(record) for record in records)


def languages(given: Iterable[str | None]) -> str | None:
    """One language for those of several parts: a code, or all of them ("de, fr"); None if there is none."""
    return ", ".join(sorted({lang for lang in given if lang is not None})) or None


def first_of(record: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first of `keys` that is there and not null."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _turns(record: dict[str, Any]) -> Annotation:
    forms: dict[str, Callable[[Any], Annotation]] = {
        "turns": lambda _: Annotation(parse_turns(record, "its entry")),
        "alignments": _moshi,
        "results": _deepgram,
        "metadata:transcript": lambda rows: Annotation(
            _segments(rows, "metadata:transcript"), lang=language_of_all(rows)
        ),
        "segments": lambda rows: _of_segments(rows, "segments"),
        "utterances": lambda rows: _of_segments(rows, "utterances"),
        "words": lambda rows: _with_speakers(turns_of_words(_words(rows, "words"))),
    }
    for key, form in forms.items():
        if record.get(key) is not None and (key == "turns" or record[key]):
            return form(record[key])
    text = first_of(record, TEXT_KEYS)
    if not isinstance(text, str):
        return Annotation(None)
    speaker = first_of(record, SPEAKER_KEYS)
    given = [{"speaker": 0 if speaker is None else speaker, "text": text}]
    return Annotation(parse_turns({"turns": given}, "its entry"), speaker=speaker if isinstance(speaker, str) else None)


def _with_speakers(turns: list[GivenTurn]) -> Annotation:
    named = any(turn.speaker != ONE for turn in turns)
    return Annotation(turns, remark=None if named else ONE_SPEAKER)


def _of_segments(rows: Any, at: str) -> Annotation:
    found = _with_speakers(_segments(rows, at))
    found.lang = language_of_all(rows)
    return found


def _segments(rows: Any, at: str) -> list[GivenTurn]:
    """Turns of `rows`, records of start, end and text; those without a text are put together from their words."""
    turns = []
    for number, row in enumerate(_list(rows, at)):
        place = f"{at}, entry {number}"
        text = first_of(row, TEXT_KEYS)
        if text is None and isinstance(row.get("words"), list):
            text = " ".join(word.text for word in _words(row["words"], place))
        if text is not None and not str(text).strip():
            continue
        start, end = seconds(row, _START_KEYS, place), _end(row, place)
        channel = row.get("channel")
        channel = channel if isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0 else None
        who = str(ONE if first_of(row, SPEAKER_KEYS) is None else first_of(row, SPEAKER_KEYS))
        words = _words(row["words"], place, who) if _name_speakers(row.get("words")) else []
        if len({word.speaker for word in words}) > 1:
            turns += [replace(turn, channel=channel) for turn in turns_of_words(words)]
            continue
        who = words[0].speaker if words else who
        turns.append(GivenTurn(0, who, start, end, None if text is None else str(text).strip(), channel))
    if not turns:
        raise ValueError(f"{at}: holds no text")
    return numbered(turns)


def _name_speakers(words: Any) -> bool:
    return isinstance(words, list) and any(
        isinstance(word, dict) and first_of(word, SPEAKER_KEYS) is not None for word in words
    )


def _words(rows: Any, at: str, speaker: str = ONE) -> list[SaidWord]:
    """speaker: of words that name none"""
    words, last = [], 0.0
    for number, row in enumerate(_list(rows, at)):
        text = str(first_of(row, _WORD_KEYS) or "").strip()
        if not text:
            continue
        timed = first_of(row, _START_KEYS) is not None  # whisperX has words without a time, such as numbers
        start = seconds(row, _START_KEYS, f"{at}, entry {number}") if timed else last
        last = _end(row, f"{at}, entry {number}") if timed else last
        who = first_of(row, SPEAKER_KEYS)
        words.append(SaidWord(text, start, last, speaker if who is None else str(who)))
    if not words:
        raise ValueError(f"{at}: holds no words")
    return words


def _moshi(rows: Any) -> Annotation:
    """Words with [start, end] and a speaker; the main one is on the left channel."""
    words = []
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        at, expected = f"alignments, entry {number}", "expected [word, [start, end], speaker]"
        try:
            text, (start, end), speaker = row
        except (TypeError, ValueError) as error:
            raise ValueError(f"{at}: {expected}") from error
        times = finite(start, expected, at), finite(end, expected, at)
        words.append(SaidWord(str(text).strip(), *times, str(speaker)))
    names = sorted({word.speaker for word in words}, key=lambda name: (name != "SPEAKER_MAIN", name))
    for word in words:
        word.channel = names.index(word.speaker) if len(names) <= 2 else None
    return Annotation(
        turns_of_words([word for word in words if word.text]), remark=ONE_CHANNEL if len(names) == 1 else None
    )


def _deepgram(results: Any) -> Annotation:
    if not isinstance(results, dict):
        raise ValueError("results: expected a JSON object")
    channels = _list(results.get("channels") or [], "results.channels")
    found = _deepgram_turns(results, channels)
    found.lang = language_of_all(channels)
    return found


def _deepgram_turns(results: dict[str, Any], channels: list[dict[str, Any]]) -> Annotation:
    if results.get("utterances"):
        turns = _segments(results["utterances"], "results.utterances")
        if len(channels) < 2:
            turns = [_without_channel(turn) for turn in turns]
        return _named_by_channel(turns) if len(channels) > 1 else _with_speakers(turns)
    turns = []
    for number, channel in enumerate(channels):
        place = f"results.channels[{number}]"
        best = next(iter(_list(channel.get("alternatives") or [], place)), {})
        words = _words(best["words"], place) if best.get("words") else []
        for word in words:
            word.channel = number if len(channels) > 1 else None
        turns += turns_of_words(words)
    if not turns:
        raise ValueError("results: holds no words")
    return _named_by_channel(numbered(turns)) if len(channels) > 1 else _with_speakers(numbered(turns))


def _without_channel(turn: GivenTurn) -> GivenTurn:
    turn.channel = None
    return turn


def _named_by_channel(turns: list[GivenTurn]) -> Annotation:
    """Speakers are counted anew in each channel, so their names get the channel's number."""
    for turn in turns:
        turn.speaker = f"{turn.channel}-{turn.speaker}"
    return Annotation(turns)


def _list(rows: Any, at: str) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{at}: expected a list of JSON objects")
    return rows


def _end(row: dict[str, Any], at: str) -> float:
    if first_of(row, _END_KEYS) is None and row.get("duration") is not None:
        return round(seconds(row, _START_KEYS, at) + seconds(row, ("duration",), at), 6)
    return seconds(row, _END_KEYS, at)


def seconds(record: dict[str, Any], keys: tuple[str, ...], at: str) -> float:
    """The number of seconds under the first of `keys`. Raises ValueError, beginning with `at`, if it is none."""
    return finite(first_of(record, keys), f"{keys[0]!r} must be a number of seconds", at)


def finite(value: Any, expected: str, at: str) -> float:
    """A finite number, which may be written as text. Raises ValueError, which says what is `expected`, otherwise."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise ValueError(f"{at}: {expected}, got {json.dumps(value, default=str)}")
    return found
