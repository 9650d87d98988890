"""seed-tts-eval: one utterance with a voice and words given by a short prompt, English and Chinese.

Its list, its audio and its arithmetic are in csm/evaluation/seedtts.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import AudioSpan, EvalPrompt, PromptSet
from csm.evaluation.seedtts import read_items
from csm.evaluation.suites.suite import Published, Suite, data_file, prompt_set, voice
from csm.formats.layouts import Checkpoint

SOURCE = "the test set of BytedanceSpeech/seed-tts-eval (en/meta.lst, zh/meta.lst and their audio)"
ENGLISH, CHINESE = 1088, 2020  # lines of the lists


def load_english(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    return _load(data_file(settings, SOURCE, "en/meta.lst"), settings, codec, ENGLISH)


def load_chinese(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    return _load(data_file(settings, SOURCE, "zh/meta.lst"), settings, codec, CHINESE)


def _load(listed: Path, settings: EvalConfig, codec: Codec, published: int) -> PromptSet:
    """Raises ValueError, with its number, for a line that is no item or whose audio is missing."""
    prompts = []
    for item in read_items(listed):
        segment, span = voice(item.prompt_audio, item.prompt_text, 0, codec, str(listed))
        recording = item.recording
        prompts.append(
            EvalPrompt(
                id=item.utterance,
                text=item.text,
                speaker=0,
                cluster=item.prompt_audio.name,
                context=[segment],
                own_context=[replace(span, channel=0)],  # what SIM is taken from, also where it is stereo
                reference=AudioSpan(recording) if recording and recording.is_file() else None,
                missing_reference=None
                if recording and recording.is_file()
                else str(recording or "the list names none"),
                voice=item.prompt_audio.name,
            )
        )
    return prompt_set(prompts, settings, listed, published)


_REQUIRES = (
    ("large-v3", "Whisper large-v3 (eval.asr=whisper_hf)"),
    ("ECAPA", "the speaker encoder of seed-tts-eval for SIM"),
)
_METRICS = ("wer_mean", "cosine_earlier", "failed", "wer_sound", "wer_corpus")
_DATA = "Common Voice (CC0) and DiDiSpeech-2 as distributed with the test set"


def _row(system: str, wer: str, sim: str, source: str, differs: str = "") -> Published:
    return Published(system, {"wer_seedtts": wer, "cosine_earlier": sim}, source, differs)


SUITE_EN = Suite(
    name="seedtts_en",
    version=1,
    scoring=(
        "wer_seedtts: WER of each utterance after seed-tts-eval's own normalization, unweighted mean over utterances "
        "and seeds, none capped; cosine_earlier: cosine with the whole original prompt (SIM-o), mean; all items"
    ),
    metrics=("wer_seedtts", *_METRICS),
    load=load_english,
    source=SOURCE,
    licence=_DATA,
    checksum="none is published; the report has the sha256 of meta.lst and counts its lines (1,088)",
    requires=_REQUIRES,
    published=(
        _row("Human", "2.14", "0.734", "CosyVoice README"),
        _row("Seed-TTS", "2.25", "0.762", "VoxCPM README"),
        _row("F5-TTS", "1.83", "0.67", "its paper"),
        _row("F5-TTS", "2.00", "0.647", "CosyVoice README"),
        _row("CosyVoice 2", "2.57", "0.659", "its README"),
        _row("VoxCPM", "1.85", "0.729", "its README"),
        _row("DSM-TTS, 32 codebooks", "1.71", "0.71", "arXiv 2509.08753"),
        _row("Higgs Audio v2", "3.09", "0.649", "an independent run, its issue tracker"),
    ),
)
SUITE_ZH = Suite(
    name="seedtts_zh",
    version=1,
    scoring=(
        "cer_seedtts: character error rate of each utterance after seed-tts-eval's own normalization, unweighted mean "
        "over utterances and seeds, none capped; cosine_earlier: cosine with the whole original prompt (SIM-o), mean; "
        "all items"
    ),
    metrics=("cer_seedtts", *_METRICS),
    load=load_chinese,
    source=SOURCE,
    licence=_DATA,
    checksum="none is published; the report has the sha256 of meta.lst and counts its lines (2,020)",
    requires=(("paraformer", "Paraformer, which this project does not run"), _REQUIRES[1]),
)
