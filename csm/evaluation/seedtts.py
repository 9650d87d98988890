"""seed-tts-eval to the letter: its list of items, its audio, and the arithmetic of its WER, CER and SIM.

BytedanceSpeech/seed-tts-eval, commit 752f429: run_wer.py, average_wer.py, verification.py, average.py. The protocol is
kept with its oddities, because numbers compare only so: no normalization of numbers or spellings (Whisper's "50" for
"fifty" is an error), all punctuation deleted, hyphens and the typographic apostrophe included, utterances averaged
without weights, and none capped at 100 %. One thing differs: the scripts silently leave out an item whose audio is
missing or unreadable. Here that is an error, and an empty output counts, so that a mean is always over all items.

The judges are Whisper large-v3 in float32, greedy (English), Paraformer (Chinese), and csm/judges/wavlm_ecapa.py.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jiwer
import numpy as np
import soundfile
import torch
from scipy.signal import resample as fourier_resample
from torch import Tensor

from csm.audio import load_channels
from csm.judges.sinc import sinc_resample

Language = Literal["en", "zh"]

RATE = 16_000  # Hz
HEARD_SECONDS = 30
"""Whisper's features end there, and the script passes on no more: the rest of a longer output is not recognized."""

# zhon.hanzi.punctuation of zhon 2.1.1, by code points
_CHINESE = [
    *(0x00B7, 0x2013, 0x2014, 0x2018, 0x2019, *range(0x201B, 0x2020), 0x2026, 0x2027),
    *(*range(0x3000, 0x3004), *range(0x3008, 0x3012), *range(0x3014, 0x3020), 0x3030, 0x303E, 0x303F),
    *(0xFE4F, 0xFE51, 0xFE54, *range(0xFF01, 0xFF10), *range(0xFF1A, 0xFF21), *range(0xFF3B, 0xFF41)),
    *range(0xFF5B, 0xFF65),
]
_DELETED = dict.fromkeys([*_CHINESE, *map(ord, string.punctuation.replace("'", ""))])


@dataclass(frozen=True)
class Item:
    """A line of meta.lst: the voice to speak with, as audio and text, and the text to be spoken.

    recording: of the text by that voice; None: the line names none
    """

    utterance: str
    prompt_text: str
    prompt_audio: Path
    text: str
    recording: Path | None = None


def read_items(meta: Path) -> list[Item]:
    """The items of a meta.lst: `utterance|prompt text|prompt audio|text[|recording]`.

    Paths are relative to the list.

    Raises:
        ValueError: no such list, or a line is not such an item, its prompt's audio is missing, its utterance occurs
            twice, or its text has nothing to be recognized; the message gives its number.
    """
    if not meta.is_file():
        raise ValueError(f"{meta}: no such list of seed-tts-eval items (its meta.lst)")
    items: dict[str, Item] = {}
    text = meta.read_text(encoding="utf-8").rstrip("\n")
    for number, line in enumerate(text.split("\n") if text else [], 1):
        fields = line.strip().split("|")
        if len(fields) not in (4, 5):
            raise ValueError(f"{meta}:{number}: has {len(fields)} fields separated by '|' instead of 4 or 5")
        recording = meta.parent / fields[4] if len(fields) == 5 else None
        item = Item(fields[0], fields[1], meta.parent / fields[2], fields[3], recording)
        if not item.prompt_audio.is_file():
            raise ValueError(f"{meta}:{number}: audio file {item.prompt_audio} does not exist")
        if item.utterance in items:
            raise ValueError(f"{meta}:{number}: utterance {item.utterance!r} occurs twice")
        if not without_punctuation(item.text).strip():
            raise ValueError(f"{meta}:{number}: its text {item.text!r} has no word")
        items[item.utterance] = item
    if not items:
        raise ValueError(f"{meta}: holds no items")
    return list(items.values())


def outputs(items: Sequence[Item], folder: Path) -> list[Path]:
    """The generated file of each item, `folder/utterance.wav`. Raises ValueError if any is missing."""
    paths = [folder / f"{item.utterance}.wav" for item in items]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder}: lacks {len(missing)} of {len(items)} outputs, e.g. {', '.join(missing[:3])}; an output that "
            "could not be made counts too: write it as an empty WAV file"
        )
    return paths


# ---------------------------------------------------------------------------------------------------------- audio


def audio_for_recognition(path: Path) -> Tensor:
    """An output as Whisper hears it: float32 [N] at 16 kHz, resampled in the frequency domain, at most 30 s.

    Raises:
        ValueError: the file is not audio, or not mono.
    """
    samples, rate = _mono(path)
    if rate != RATE and len(samples):
        samples = fourier_resample(samples.astype(np.float64), int(len(samples) * RATE / rate))
    return torch.from_numpy(samples[: HEARD_SECONDS * RATE].astype(np.float32))


def audio_for_similarity(path: Path, prompt: bool = False) -> Tensor:
    """An output or a prompt as the speaker encoder hears it: float32 [N] at 16 kHz, the whole file.

    Of a stereo prompt that is its first channel. Of a stereo output the script keeps two samples: it is refused.

    Raises:
        ValueError: the file is not audio, or is an output and not mono.
    """
    if prompt:
        channels, rate = load_channels(path)
        return sinc_resample(channels[0], rate, RATE)
    samples, rate = _mono(path)
    return sinc_resample(torch.from_numpy(samples), rate, RATE)


def _mono(path: Path) -> tuple[np.ndarray, int]:
    """Samples float32 [N] and their rate; N is 0 for an output that is an empty WAV file."""
    with suppress(soundfile.SoundFileError):  # load_channels says why a file cannot be read
        if (header := soundfile.info(path)).frames == 0:
            return np.zeros(0, np.float32), header.samplerate
    channels, rate = load_channels(path)
    if len(channels) != 1:
        raise ValueError(f"{path}: has {len(channels)} channels; seed-tts-eval is defined for mono outputs")
    return channels[0].numpy(), rate


# ------------------------------------------------------------------------------------------------------ arithmetic


@dataclass(frozen=True)
class ItemErrors:
    """Error rates of one item, as fractions. `wer` counts words (English) or characters (Chinese).

    The other three have the script's own denominator, which counts the blanks that deleted punctuation leaves behind,
    so they need not add up to `wer`.
    """

    wer: float
    substitutions: float
    deletions: float
    insertions: float


def item_errors(text: str, transcript: str, language: Language) -> ItemErrors:
    """Errors of a transcript; an empty one has a rate of 1.

    Chinese: the transcript in simplified characters (zhconv's zh-cn), as `text` is.

    Raises:
        ValueError: `text` has no word, so that no rate is defined.
    """
    reference, hypothesis = (_prepared(one, language) for one in (text, transcript))
    if not reference.strip():
        raise ValueError(f"text {text!r} has no word: seed-tts-eval defines no error rate for it")
    counts = jiwer.process_words(reference, hypothesis)
    length = len(reference.split(" "))
    return ItemErrors(counts.wer, counts.substitutions / length, counts.deletions / length, counts.insertions / length)


def without_punctuation(text: str) -> str:
    """Deletes punctuation, the apostrophe (') excepted, then makes one blank of every two, once."""
    return text.translate(_DELETED).replace("  ", " ")


def _prepared(text: str, language: Language) -> str:
    text = without_punctuation(text)
    return text.lower() if language == "en" else " ".join(text)


@dataclass(frozen=True)
class ErrorTable:
    """Unweighted means over all items, in percent. `below_50` leaves out the items above 50 %; None if all are."""

    wer: float
    substitutions: float
    deletions: float
    insertions: float
    below_50: float | None
    above_50_items: int
    items: int


def error_table(items: Sequence[ItemErrors]) -> ErrorTable:
    """Means of all items; the script prints them with three decimals. Raises ValueError for none."""
    if not items:
        raise ValueError("seed-tts-eval: no items to average")
    below = [item.wer for item in items if item.wer <= 0.5]
    return ErrorTable(
        wer=100 * float(np.mean([item.wer for item in items])),
        substitutions=100 * float(np.mean([item.substitutions for item in items])),
        deletions=100 * float(np.mean([item.deletions for item in items])),
        insertions=100 * float(np.mean([item.insertions for item in items])),
        below_50=100 * float(np.mean(below)) if below else None,
        above_50_items=len(items) - len(below),
        items=len(items),
    )


@dataclass(frozen=True)
class SimilarityTable:
    """SIM: the mean over all items of the cosine of an output and its original prompt, and their variance."""

    sim: float
    variance: float
    items: int
    without_voice: int


def similarity_table(cosines: Sequence[float | None]) -> SimilarityTable:
    """Mean and (population) variance of all items; an output without speech (None) resembles no voice: 0.

    Raises:
        ValueError: no items.
    """
    if not cosines:
        raise ValueError("seed-tts-eval: no items to average")
    values = [0.0 if cosine is None else cosine for cosine in cosines]
    return SimilarityTable(float(np.mean(values)), float(np.var(values)), len(values), list(cosines).count(None))
