"""LibriSpeech-PC test-clean, cross-sentence: a sentence in the voice of another sentence of the same reader.

The list of F5-TTS has six columns separated by tabs: the prompt's utterance, seconds and text, then those of the
sentence to be spoken. Audio is LibriSpeech's own tree.
"""

from __future__ import annotations

from pathlib import Path

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.evaluation.prompts import AudioSpan, EvalPrompt, PromptSet
from csm.evaluation.suites.suite import Published, Suite, data_file, prompt_set, voice
from csm.formats.layouts import Checkpoint

LIST = "librispeech_pc_test_clean_cross_sentence.lst"
SOURCE = f"{LIST} (from the data folder of SWivid/F5-TTS) beside test-clean/ of LibriSpeech"
PAIRS = 1127


def load(settings: EvalConfig, codec: Codec, checkpoint: Checkpoint) -> PromptSet:
    """Raises ValueError, with its number, for a line that is no pair or whose audio is missing."""
    listed = data_file(settings, SOURCE, LIST)
    prompts = []
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), start=1):
        where, fields = f"{listed}:{number}", line.strip().split("\t")
        if len(fields) != 6:
            raise ValueError(f"{where}: has {len(fields)} columns separated by tabs, expected 6")
        prompt_name, _, prompt_text, name, _, text = fields
        segment, span = voice(_audio(listed.parent, prompt_name, where), prompt_text, 0, codec, where)
        recording = _audio(listed.parent, name, where)
        prompts.append(
            EvalPrompt(
                id=f"{name} after {prompt_name}",
                text=text,
                speaker=0,
                cluster=name.split("-")[0],
                context=[segment],
                own_context=[span],
                reference=AudioSpan(recording) if recording.is_file() else None,
                missing_reference=None if recording.is_file() else str(recording),
                voice=name.split("-")[0],
            )
        )
    return prompt_set(prompts, settings, listed, PAIRS)


def _audio(folder: Path, name: str, where: str) -> Path:
    parts = name.split("-")
    if len(parts) != 3:
        raise ValueError(f"{where}: {name!r} is no utterance of LibriSpeech, reader-chapter-number")
    return folder / "test-clean" / parts[0] / parts[1] / f"{name}.flac"


def _row(system: str, wer: str, sim: str, differs: str = "") -> Published:
    return Published(system, {"wer_corpus": wer, "cosine_earlier": sim}, "F5-TTS paper and DSM-TTS paper", differs)


SUITE = Suite(
    name="librispeech_pc",
    version=1,
    scoring=(
        "corpus WER: all errors over all words, Whisper's normalizer; cosine_earlier: cosine with the whole prompt, "
        "mean; clusters are readers"
    ),
    metrics=("wer_corpus", "wer_mean", "cosine_earlier", "cosine_recording", "failed", "wer_sound", "speed"),
    load=load,
    source=SOURCE,
    licence="LibriSpeech, CC BY 4.0",
    checksum="none is published; the report has the sha256 of the list and counts its lines (1,127)",
    requires=(
        ("large-v3", "Whisper large-v3 (eval.asr=whisper_hf)"),
        ("ECAPA", "the speaker encoder of seed-tts-eval"),
    ),
    published=(
        _row("Recording", "2.23", "0.69"),
        _row("F5-TTS", "2.42", "0.66"),
        _row("CosyVoice", "3.59", "0.66"),
        _row("DSM-TTS, 32 codebooks", "1.68", "0.71"),
        Published(
            "VALL-E 2",
            {"wer_corpus": "2.44", "cosine_earlier": "0.643"},
            "F5-TTS paper",
            "another subset and recognizer",
        ),
    ),
)
