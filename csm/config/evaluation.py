"""Options of evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class AsrKind(Enum):
    whisper_hf = "whisper_hf"
    """Whisper of transformers."""
    faster_whisper = "faster_whisper"
    """Whisper in CTranslate2's format, through faster-whisper."""
    ctc = "ctc"
    """Letters of a CTC model, which invents no words (English unless `asr_model` is of another language)."""


class PhonemeKind(Enum):
    wav2vec2 = "wav2vec2"
    """wav2vec2 with espeak's phonemes, from the hub: the recognizer of Sesame's homograph test."""
    hama = "hama"
    """hama, whose weights are part of its package."""


class SpeakerKind(Enum):
    wavlm = "wavlm"
    """WavLM fine-tuned for speaker verification, from the hub."""
    wavlm_ecapa = "wavlm_ecapa"
    """WavLM-large with ECAPA-TDNN, the encoder of published SIM; `speaker_model`: its file."""
    resemblyzer = "resemblyzer"
    """Resemblyzer, whose weights are part of its package."""


class WeightsDtype(Enum):
    fp32 = "fp32"
    """Single precision."""
    bf16 = "bf16"
    """Half the memory, for generation on GPUs."""


@dataclass
class EvalConfig:
    """The prompts that are spoken, how they are sampled, and the models that judge the speech."""

    name: str = MISSING
    """Name of the evaluation; part of the report folder's name."""
    suite: str = "turns"
    """Items to evaluate and how they are scored, see docs/evaluation.md; `turns`: turns of `dataset`, or `prompts`."""
    data: str | None = None
    """Folder with the data of a published suite, in the layout in which it is published, or of a suite's recordings."""
    prompts: str | None = None
    """JSONL file of prompts; null: turns of `dataset`."""
    dataset: str | None = None
    """Dataset folder to take prompts from; null: the one named in the checkpoint."""
    split: str = "val"
    """Split of the dataset."""
    intrinsic_split: str | None = None
    """Split of the dataset whose every frame is scored teacher-forced; null: none."""
    speaker: int | None = None
    """Only turns of this stored speaker id; null: every turn."""
    max_prompts: int = 16
    """Largest number of prompts."""
    context_turns: int = 8
    """Earlier turns of the conversation given as context."""
    max_audio_seconds: float = 20.0
    """Longest speech generated for one prompt."""
    temperature: float = 0.9
    """Sampling temperature; 0: greedy."""
    topk: int = 50
    """Sample among this many most likely codes."""
    guidance: float = 1.0
    """Scale of classifier-free guidance towards the text, for models trained with `data.text_dropout`; 1: none."""
    num_codebooks: int | None = None
    """Codebooks generated per frame, the first ones of the model's; null: all."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Every prompt is spoken once per seed."""
    asr: AsrKind = AsrKind.whisper_hf
    """Speech recognizer of the word error rate."""
    asr_model: str | None = None
    """Its model, a name or folder; null: the recognizer's default."""
    speaker_model_kind: SpeakerKind = SpeakerKind.wavlm
    """Speaker encoder of the speaker similarity."""
    speaker_model: str | None = None
    """Its model, a name, folder or, for `wavlm_ecapa`, file; null: the encoder's default."""
    phonemes: PhonemeKind = PhonemeKind.wav2vec2
    """Phoneme recognizer of the suites that test pronunciation."""
    phoneme_model: str | None = None
    """Model of the recognizer `wav2vec2`, a name or folder; null: its default."""
    measures: list[str] = field(default_factory=list)
    """Further judges, which give one number for each utterance, by name."""
    codec_levels: list[int] = field(default_factory=lambda: [16, 8])
    """Numbers of codebooks with which recordings are resynthesized besides all; 16 and 8 are known."""
    language: str = "en"
    """Language of the prompts, for recognition and text normalization."""
    bootstrap_samples: int = 2000
    """Resamples of the bootstrap confidence intervals."""


@dataclass
class EvaluateConfig:
    """Options of `python evaluate.py`."""

    checkpoint: str = MISSING
    """Model to evaluate: a checkpoint in any format, local or on the hub."""
    codec_path: str | None = None
    """Local Mimi weights (moshi's file), for a checkpoint without a codec."""
    tokenizer_path: str | None = None
    """Tokenizer for a checkpoint in Sesame's format without one."""
    output: str | None = None
    """Report folder; null: <checkpoint>/../eval-<eval.name>."""
    device: str = "cpu"
    """Device for generation and judges, such as `cpu` or `cuda`."""
    dtype: WeightsDtype | None = None
    """Dtype of the model's weights; null: bf16 on CUDA, else as stored."""
    wandb_project: str | None = None
    """W&B project that is sent the headline numbers and a table of the items; null: none."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Prompts, sampling and judges."""
