"""Checks of a turn's text alone: speech rate, and texts in which a recognizer was stuck in a loop or hallucinated."""

from __future__ import annotations

import html
import re
import unicodedata

from csm.languages import MARKS, letters

# Scripts written without spaces (kana, CJK ideographs, Thai, Lao, Burmese, Khmer): each letter counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTERS = rf"(?:[^\W_{_UNSPACED}][{MARKS}]*)+"
_WORD = re.compile(rf"[{_UNSPACED}][{MARKS}]*|{_LETTERS}(?:['\u2019]{_LETTERS})*")

# A phrase of at most this many words that is repeated this often in a row, for at least so many words, is a loop of the
# recognizer; "no, no, no, no" and "bye bye bye" are not.
_LOOP_WORDS, _LOOP_TIMES, _LOOP_LENGTH = 10, 4, 8
# The same by letters, within words and across them: "hahahahahahahaha", "aaaaaaaa".
_LETTER_LOOP = re.compile(r"(.{1,4}?)\1{7}")

# In spontaneous speech, well over half of any 50 words are distinct; Granary's recipe (NeMo Speech Data Processor)
# too takes a share of 0.4 as a hallucination. Below ten words the share says nothing. Rhetoric and poems repeat
# themselves as much ("It was the best of times, it was the worst of times"); of them, the recognizer is sure.
_DISTINCT_SHARE, _DISTINCT_FROM, _DISTINCT_WINDOW = 0.4, 10, 50
_SURE_LOGPROB = -0.25
# The longest words people say, German compounds among them, have about 40 letters.
_LONGEST_WORD = 45
# Speech has 8 to 20 letters/s (2 to 6 in syllabic and ideographic scripts, whose phrases have few letters). A stock
# phrase at a lower rate than this is not what was said.
_FEW_LETTERS_PER_SECOND = 3.0
_FEW_SYLLABLES_PER_SECOND = 1.0
# Whisper's own threshold for "this is no speech".
_NO_SPEECH_PROB = 0.6


def words(text: str) -> list[str]:
    """The words, without case and punctuation; letters of scripts without spaces one by one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _spoken(phrases: dict[str, list[str]]) -> dict[str, set[str]]:
    """Phrases of each language as `hallucination` compares them: their words alone."""
    return {lang: {" ".join(words(phrase)) for phrase in said} for lang, said in phrases.items()}


# Whisper writes these for silence and music, as learned from subtitles. Nobody says them.
_CREDITS = _spoken(
    {
        "ar": ["ترجمة نانسي قنقر"],
        "de": ["Untertitel der Amara.org-Community", "Untertitel im Auftrag des ZDF für funk, 2017"],
        "en": ["Subtitles by the Amara.org community"],
        "es": ["Subtítulos realizados por la comunidad de Amara.org", "Subtítulos por la comunidad de Amara.org"],
        "fr": ["Sous-titres réalisés par la communauté d'Amara.org"],
        "it": ["Sottotitoli creati dalla comunità Amara.org", "Sottotitoli e revisione a cura di QTSS"],
        "nl": ["Ondertitels ingediend door de Amara.org gemeenschap", "Ondertiteld door de Amara.org gemeenschap"],
        "pl": ["Napisy stworzone przez społeczność Amara.org"],
        "pt": ["Legendas pela comunidade Amara.org"],
        "ru": ["Субтитры сделал DimaTorzok", "Субтитры создавал DimaTorzok"],
        "tr": ["Altyazı M.K."],  # noqa: RUF001
        "zh": ["请不吝点赞 订阅 转发 打赏支持明镜与点点栏目", "字幕由Amara.org社区提供"],
    }
)
# People do say these, but not over a long stretch, nor where the recognizer itself finds no speech.
_COURTESIES = _spoken(
    {
        "ar": ["شكرا", "اشتركوا في القناة"],
        "de": ["Vielen Dank.", "Vielen Dank fürs Zuschauen.", "Tschüss."],
        "en": ["Thank you.", "Thanks.", "Thank you very much.", "Thanks for watching.", "Thank you for watching."],
        "es": ["Gracias.", "¡Gracias por ver el video!", "¡Suscríbete al canal!"],
        "fr": ["Merci.", "Merci d'avoir regardé cette vidéo."],
        "it": ["Grazie.", "Grazie a tutti."],
        "ja": ["ありがとうございました", "ご視聴ありがとうございました", "チャンネル登録をお願いいたします"],
        "ko": ["감사합니다.", "시청해주셔서 감사합니다.", "구독과 좋아요 부탁드립니다."],
        "nl": ["Dank u wel.", "Bedankt voor het kijken."],
        "pl": ["Dziękuję.", "Dziękuję za uwagę.", "Dziękuję za oglądanie."],
        "pt": ["Obrigado.", "Obrigado por assistir."],
        "ru": ["Спасибо.", "Спасибо за просмотр!", "Продолжение следует..."],
        "tr": ["İzlediğiniz için teşekkür ederim."],
        "zh": ["谢谢", "谢谢观看", "谢谢大家"],
    }
)
_COURTESIES["en"] |= {"you", "bye", "okay", "so", "please subscribe"}


# What transcribers write next to the words, once entities are characters: <laugh> [noise] {breath} ((unclear))
_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\(\([^()]*\)\)")
# Characters without width, which change nothing of what is said; joiners (U+200C, U+200D) do, in Persian and in Indic
# scripts.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def without_controls(text: str) -> str:
    """The text without control and invisible characters; white space, line breaks included, is one space."""
    visible = _INVISIBLE.sub("", text)
    return " ".join("".join(" " if unicodedata.category(one) == "Cc" else one for one in visible).split())


def has_markup(text: str) -> bool:
    """Whether tags, entities or bracketed notes are part of the text."""
    return _MARKUP.search(text) is not None or html.unescape(text) != text


def without_markup(text: str) -> str:
    """The text without tags, entities and bracketed notes."""
    return _MARKUP.sub(" ", html.unescape(text))


def is_no_speech(text: str) -> bool:
    """Whether nothing of the text is spoken: punctuation, symbols and markup only."""
    return letters(without_markup(text)) == 0


def shortened(text: str, most: int = 60) -> str:
    """At most `most` characters of a text, for messages."""
    return text if len(text) <= most else text[: most - 3] + "..."


def chars_per_second(text: str, seconds: float) -> float:
    """`letters` a second; `seconds` must be positive."""
    return letters(text) / seconds


def repetition(text: str) -> str | None:
    """Describes the repetition if the text is stuck in a loop, else None."""
    spoken = words(text)
    for size in range(1, _LOOP_WORDS + 1):
        run = 0  # words that equal the one `size` before them, up to here
        for i in range(size, len(spoken)):
            run = run + 1 if spoken[i] == spoken[i - size] else 0
            length = run + size
            if length >= max(_LOOP_TIMES * size, _LOOP_LENGTH):
                return f"{' '.join(spoken[i - size + 1 : i + 1])!r} at least {length // size} times in a row"
    loop = _LETTER_LOOP.search("".join(spoken))
    return f"{loop[1]!r} at least 8 times in a row" if loop and not loop[1].isdigit() else None


def hallucination(
    text: str, seconds: float, lang: str | None, no_speech_prob: float | None, avg_logprob: float | None = None
) -> str | None:
    """Explains why a recognized text cannot be what was said in `seconds`, None if it may be.

    `lang` (ISO 639-1) chooses the stock phrases; None: those of all languages.
    """
    spoken = words(text)
    window = min(len(spoken), _DISTINCT_WINDOW)
    sure = avg_logprob is not None and avg_logprob > _SURE_LOGPROB
    if not sure and window >= _DISTINCT_FROM and len(set(spoken)) <= _DISTINCT_SHARE * window:
        return f"{len(set(spoken))} distinct words among {len(spoken)}"
    longest = max(spoken, key=len, default="")
    if len(longest) > _LONGEST_WORD:
        return f"a word of {len(longest)} letters"
    phrase = " ".join(spoken)
    if phrase in _phrases(_CREDITS, lang):
        return f"{text.strip()!r}, a subtitler's phrase"
    if phrase in _phrases(_COURTESIES, lang):
        unspaced = re.search(rf"[{_UNSPACED}\uac00-\ud7af]", phrase)
        rate = chars_per_second(text, seconds)
        lowest = _FEW_SYLLABLES_PER_SECOND if unspaced else _FEW_LETTERS_PER_SECOND
        if rate < lowest:
            return f"{text.strip()!r}, a stock phrase, at {rate:.1f} letters/s (< {lowest:g})"
        if no_speech_prob is not None and no_speech_prob > _NO_SPEECH_PROB:
            return f"{text.strip()!r}, a stock phrase, where no speech was likely ({no_speech_prob:.2f})"
    return None


def _phrases(table: dict[str, set[str]], lang: str | None) -> set[str]:
    return set().union(*table.values()) if lang is None else table.get(lang, set())
