"""Main lines of CHAT as a text to be read: what is said, repetitions and false starts included, without the codes."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\+[<^,+]|\[[^\]]*\]|[<>]|[^\s\[\]<>]+")
_TIMES = re.compile(r"\[x (\d+)\]")  # said so many times
_MOST_TIMES = 20
_PAUSE = re.compile(r"\(\.+\)|\((?:\d+:)?\d*\.?\d*\)|#\S*")
_NOT_UNDERSTOOD = {"xx", "xxx", "yy", "yyy", "www"}
_ENDS = {  # of an utterance -> as a text has it
    "+...": "...", "+..": "...", "+..?": "?", "+!?": "?!", "+/.": "\u2014", "+//.": "\u2014", "+/?": "?",
    "+//?": "?", '+"/.': ".", '+".': ".", "+.": ".",
}  # fmt: skip
_SIGNS = {".", "?", "!", ",", ";", ":", *_ENDS.values()}
_TAG = {"\u201e": ",", "\u2021": ","}  # before a tag ("isn't it"), after a vocative
# Quotation marks, and signs of conversation analysis: pitch, overlap, loudness, voice, stress.
_CA = re.compile(
    "[\u2308\u2309\u230a\u230b][0-9]?|[\u2190-\u21ff\u2206\u2207\u2219\u221e\u222b-\u222e\u2248\u224b\u2261\u2581\u2594"
    "\u25c9\u263a\u264b\u266a\u204e\u2047\u00a7\u00b0\u02c8\u02cc\u201c\u201d^]"
)
_INTERPOSED = re.compile(r"&\*([^\s:]+):(\S+)")  # &*MOT:mhm, said by another while the line goes on
_BLOCKED = re.compile("\u21ab([^\u21ab]*)\u21ab")  # a stutter: what is between the arrows is said before the word


def spoken_text(line: str) -> tuple[str, bool]:
    """Spoken text of a main line, and whether all of it was understood; "" if nothing is said.

    Raises ValueError for a count of repetitions that nobody says.
    """
    words: list[str] = []
    understood = True
    opened: list[int] = []  # places of words where a group <...> begins
    group = 0  # where the last word or group begins
    for token in _TOKEN.findall(line):
        if token == "<":
            opened.append(len(words))
        elif token == ">":
            group = opened.pop() if opened else group
        elif token.startswith("["):
            times = _TIMES.fullmatch(token)
            if times is None:
                continue
            if not 1 <= int(times[1]) <= _MOST_TIMES:
                raise ValueError(f"{token}: nothing is said so many times")
            words += words[group:] * (int(times[1]) - 1)
        elif token in _ENDS or token in _TAG or token in _SIGNS:
            words.append(_ENDS.get(token) or _TAG.get(token) or token)
        else:
            word = _word(token)
            understood &= word.strip(".,?!").lower() not in _NOT_UNDERSTOOD
            if word:
                group = len(words)
                words.append(word)
    if all(word in _SIGNS for word in words):
        return "", understood
    text = ""
    for word in words:
        text += word if word in _SIGNS or not text else f" {word}"
    return text.lstrip(",;:. "), understood


def interposed(line: str) -> list[tuple[str, str, float]]:
    """Words of others during a main line: speaker, words, and how far into the line, as a share of its tokens."""
    tokens = _TOKEN.findall(line)
    found = []
    for number, token in enumerate(tokens, start=1):
        match = _INTERPOSED.fullmatch(token)
        said = _word(match[2]) if match else ""
        if match and said and said.lower() not in _NOT_UNDERSTOOD:
            found.append((match[1], said, number / (len(tokens) + 1)))
    return found


def _word(token: str) -> str:
    """A token as it is said: "" for codes, pauses, events and words that are left out."""
    if (
        _PAUSE.fullmatch(token)
        or token.startswith(("+", "&=", "&*", "&{", "&}"))
        or re.match(r"0+(?:[^\W\d]|$)", token)
    ):
        return ""
    if token.startswith("&"):
        fragment = token.startswith("&+")
        token = token.lstrip("&+-~") + ("-" if fragment else "")
    token = _CA.sub("", _BLOCKED.sub(r"\1-", token))
    token = re.sub(r"@[\w:&$*-]*$", "", token)  # kinds of word: b@l, gumma@c, adios@s:spa
    token = re.sub(r"[()]|(?<=\w):+", "", token)  # letters left out, which spelling has; lengthened vowels
    return re.sub(r"[_+]", " ", token).strip()
