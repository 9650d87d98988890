"""Text normalization before word errors are counted.

Reference and hypothesis pass through the same function, so that "I'm twenty-one." and "i am 21" agree. English uses
the normalizer published with Whisper (Radford et al. 2022, appendix C), without its British/American spelling table;
every other language uses Whisper's basic one (lower case, no punctuation).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer


@dataclass(frozen=True)
class TextNormalizer:
    """Callable `text -> text`; `name` goes into every report, because a WER without its normalizer means little."""

    name: str
    function: BasicTextNormalizer | EnglishTextNormalizer

    def __call__(self, text: str) -> str:
        return " ".join(self.function(text).split())


def load_normalizer(language: str) -> TextNormalizer:
    """The normalizer of a language given by its two-letter code, e.g. "en"."""
    package = f"transformers {version('transformers')}"
    if language == "en":
        return TextNormalizer(f"Whisper English, no spelling table ({package})", EnglishTextNormalizer({}))
    return TextNormalizer(f"Whisper basic ({package})", BasicTextNormalizer())
