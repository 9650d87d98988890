"""Faults that are planted into good speech move the metric meant for them, and no other that they do not touch.

The speech is the recordings with a little noise. One evaluation speaks every prompt with five seeds; each seed but the
first has a fault of its own.
"""

import json

import librosa
import numpy as np
import pytest
import torch

from csm.config import AsrKind, EvalConfig, EvaluateConfig, SpeakerKind
from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import dataset_prompts
from csm.evaluation.run import evaluate
from csm.evaluation.stages import sampling_seed
from csm.formats.load import load_generator
from csm.inference.generator import Generator
from csm.inference.segments import GeneratedSegment

RATE = 24_000


def drops_words(audio: np.ndarray) -> np.ndarray:
    """Silence instead of the third quarter."""
    audio = audio.copy()
    audio[len(audio) // 2 : 3 * len(audio) // 4] = 0
    return audio


# name: (what it does to the audio, the metrics that it must move, those that it may: to a small recognizer and a small
# speaker encoder, a phase vocoder is also a worse articulation and another voice)
FAULTS = {
    "none": (lambda audio: audio, set(), set()),
    "drops words": (drops_words, {"wer_corpus"}, set()),
    "another voice": (
        lambda audio: librosa.effects.pitch_shift(audio, sr=RATE, n_steps=4),
        {"cosine_recording"},
        {"wer_corpus"},
    ),
    "does not end": (lambda audio: np.concatenate([audio, np.zeros(2 * RATE, np.float32)]), {"failed"}, set()),
    "twice as fast": (
        lambda audio: librosa.effects.time_stretch(audio, rate=2.0),
        {"speed", "failed"},
        {"wer_corpus", "cosine_recording"},
    ),
}
MARGIN = {"wer_corpus": 0.05, "cosine_recording": 0.1, "failed": 0.2, "speed": 0.1}
"""Changes below it do not count, such as that of the voice's embedding by a second of silence."""


@pytest.mark.slow
def test_every_fault_moves_its_metric_and_no_other(checkpoint, dataset_path, tmp_path, monkeypatch):
    settings = EvalConfig(
        "faults",
        split="train",
        max_prompts=6,
        max_audio_seconds=0.16,
        seeds=list(range(len(FAULTS))),
        codec_levels=[],
        asr=AsrKind.faster_whisper,
        speaker_model_kind=SpeakerKind.resemblyzer,
        bootstrap_samples=500,
    )
    codec = load_generator(checkpoint).codec
    prompts = dataset_prompts(ShardedDataset(dataset_path), settings, codec, "model").prompts
    planted = {sampling_seed(seed, prompt): (name, prompt) for seed, name in enumerate(FAULTS) for prompt in prompts}

    def result(generator, turn, request):
        name, prompt = planted[turn.seed]
        audio = prompt.reference.load(RATE)
        noise = torch.randn(len(audio), generator=torch.Generator().manual_seed(turn.seed % 1000))
        spoken = FAULTS[name][0]((audio + 0.003 * noise).numpy())
        reason = "length" if name == "does not end" else "stop"
        return GeneratedSegment(0, turn.text, torch.from_numpy(spoken), torch.zeros(5, 1), reason)

    monkeypatch.setattr(Generator, "result", result)
    folder = evaluate(EvaluateConfig(str(checkpoint), output=str(tmp_path / "report"), eval=settings))
    by_seed = json.loads((folder / "results.json").read_text())["model_by_seed"]
    rows = {name: by_seed[str(seed)]["model"]["metrics"] for seed, name in enumerate(FAULTS)}
    sound = rows["none"]
    assert sound["wer_corpus"]["value"] < 0.1 and sound["failed"]["value"] == 0
    for name, (_, expected, allowed) in FAULTS.items():
        moved = {metric for metric in MARGIN if is_moved(rows[name][metric], sound[metric], MARGIN[metric])}
        assert expected <= moved <= expected | allowed, (name, moved)


def is_moved(score: dict, sound: dict, margin: float) -> bool:
    """Whether the intervals are apart and the values differ by the margin. Turns without end have no speed."""
    if "not_run" in score:
        return False
    apart = score["low"] > sound["high"] or score["high"] < sound["low"]
    return apart and abs(score["value"] - sound["value"]) > margin
