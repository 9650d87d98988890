"""Faults that are planted into good speech move the metric meant for them, and no other that they do not touch.

The speech is the recordings with a little noise. An evaluation speaks every prompt with several seeds; each seed but
the first has a fault of its own.
"""

import json
import shutil
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from csm.audio import load_audio
from csm.config import AsrKind, EvalConfig, EvaluateConfig, PhonemeKind, SpeakerKind
from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import dataset_prompts
from csm.evaluation.run import evaluate
from csm.evaluation.stages import sampling_seed
from csm.evaluation.suites import find_suite
from csm.formats.load import load_generator
from csm.formats.open import open_checkpoint
from csm.inference.generator import Generator
from csm.inference.segments import GeneratedSegment

RATE = 24_000
SPOKEN = Path(__file__).parent / "pronounced"


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
        {"cosine_earlier", "wer_corpus"},
    ),
    "does not end": (lambda audio: np.concatenate([audio, np.zeros(2 * RATE, np.float32)]), {"failed"}, set()),
    "twice as fast": (
        lambda audio: librosa.effects.time_stretch(audio, rate=2.0),
        {"speed", "failed"},
        {"wer_corpus", "cosine_recording", "cosine_earlier"},
    ),
}
MARGIN = {
    "wer_corpus": 0.05,
    "cosine_recording": 0.1,
    "cosine_earlier": 0.1,
    "failed": 0.2,
    "speed": 0.1,
    "leakage": 0.05,
    "pronounced": 0.2,
    "pronounced_greedy": 0.2,
    "f0_distance": 0.3,
    "energy_distance": 1.0,
    "rate_distance": 0.1,
}
"""Changes below it do not count, such as that of the voice's embedding by a second of silence."""


@pytest.mark.slow
def test_every_fault_moves_its_metric_and_no_other(checkpoint, dataset_path, tmp_path, monkeypatch):
    settings = options("turns", seeds=list(range(len(FAULTS))))
    codec = load_generator(checkpoint).codec
    prompts = dataset_prompts(ShardedDataset(dataset_path), settings, codec, "model").prompts
    planted = {sampling_seed(seed, prompt): (name, prompt) for seed, name in enumerate(FAULTS) for prompt in prompts}

    def result(generator, turn, request):
        name, prompt = planted[turn.seed]
        spoken = FAULTS[name][0](noisy(prompt.reference.load(RATE), turn.seed).numpy())
        reason = "length" if name == "does not end" else "stop"
        return GeneratedSegment(0, turn.text, torch.from_numpy(spoken), torch.zeros(5, 1), reason)

    rows = model_rows(checkpoint, tmp_path, settings, result, monkeypatch)
    sound = rows["0"]
    assert sound["wer_corpus"]["value"] < 0.1 and sound["failed"]["value"] == 0
    for seed, (name, (_, expected, allowed)) in enumerate(FAULTS.items()):
        moved = moved_metrics(rows[str(seed)], sound)
        assert expected <= moved <= expected | allowed, (name, moved)


@pytest.mark.slow
def test_mispronouncing_one_sense_moves_the_pronunciation_alone(checkpoint, tmp_path, monkeypatch):
    """Seed 0 says each homograph in its sense, seed 1 has but one pronunciation of each."""
    for path in SPOKEN.glob("*.ogg"):
        if "-as-" not in path.name:
            (tmp_path / "people").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "people")
    settings = options("homograph", seeds=[0, 1], max_prompts=10, data=str(tmp_path / "people"))
    settings.phonemes = PhonemeKind.hama
    prompts = find_suite("homograph").load(settings, load_generator(checkpoint).codec, None).prompts
    planted = {sampling_seed(seed, prompt): (seed, prompt) for seed in (0, 1) for prompt in prompts}

    def result(generator, turn, request):
        seed, prompt = planted[turn.seed]
        only, _ = prompt.target.variants
        name = prompt.id if seed == 0 or prompt.target.variant == only else f"{prompt.id}-as-{only}"
        audio = noisy(load_audio(SPOKEN / f"{name}.ogg", RATE), turn.seed)
        return GeneratedSegment(0, turn.text, audio, torch.zeros(5, 1), "stop")

    rows = model_rows(checkpoint, tmp_path, settings, result, monkeypatch)
    assert rows["0"]["pronounced"]["value"] == 1 and rows["1"]["pronounced"]["value"] <= 0.6  # each judged word by word
    assert moved_metrics(rows["1"], rows["0"]) <= {"pronounced", "pronounced_greedy"}
    assert "pronounced" in moved_metrics(rows["1"], rows["0"])


@pytest.mark.slow
def test_ignoring_the_context_moves_the_prosody_that_context_gives(checkpoint, dataset_path, tmp_path, monkeypatch):
    """Seed 0 speaks with the true turn's prosody where it has the true turns before it, else with another one. Seed 1
    does so whatever it is given. Voice, words and length are the same."""
    settings = options("context", seeds=[0, 1], max_prompts=6, context_turns=1)
    generator = load_generator(checkpoint)
    opened = open_checkpoint(str(checkpoint), None, None)
    prompts = find_suite("context").load(settings, generator.codec, opened).prompts
    planted = {sampling_seed(seed, prompt): (seed, prompt) for seed in (0, 1) for prompt in prompts}

    def result(generator, turn, request):
        seed, prompt = planted[turn.seed]
        audio = noisy(prompt.reference.load(RATE), turn.seed)
        if seed == 1 or prompt.condition != "1 turns":
            audio = other_prosody(audio)
        return GeneratedSegment(0, turn.text, audio, torch.zeros(5, 1), "stop")

    monkeypatch.setattr(Generator, "result", result)
    folder = evaluate(EvaluateConfig(str(checkpoint), output=str(tmp_path / "report"), eval=settings))
    by_seed = json.loads((folder / "results.json").read_text())["model_by_seed"]
    sound, ignoring = (by_seed[seed]["model/1 turns"]["metrics"] for seed in ("0", "1"))
    assert {"f0_distance"} <= moved_metrics(ignoring, sound) <= {"f0_distance", "energy_distance"}
    for name in ("model/0 turns", "model/1 turns of another conversation"):  # no part of the fault
        assert not moved_metrics(by_seed["1"][name]["metrics"], by_seed["0"][name]["metrics"])


def other_prosody(audio: torch.Tensor) -> torch.Tensor:
    """Read at a speed that swings by two semitones, up and down within 0.7 s, as a melody of its own."""
    speed = 2 ** (2 / 12 * np.sin(2 * np.pi * np.arange(len(audio)) / (0.7 * RATE)))
    places = np.cumsum(speed)
    heard = np.interp(places[places < len(audio) - 1], np.arange(len(audio)), audio.numpy())
    return torch.from_numpy(heard.astype(np.float32))


def noisy(audio: torch.Tensor, seed: int) -> torch.Tensor:
    return audio + 0.003 * torch.randn(len(audio), generator=torch.Generator().manual_seed(seed % 1000))


def options(suite: str, **changes) -> EvalConfig:
    settings = {
        "split": "train",
        "max_prompts": 6,
        "max_audio_seconds": 0.16,
        "codec_levels": [],
        "asr": AsrKind.faster_whisper,
        "speaker_model_kind": SpeakerKind.resemblyzer,
        "bootstrap_samples": 500,
    }
    return EvalConfig("faults", suite=suite, **settings | changes)


def model_rows(checkpoint, tmp_path, settings, result, monkeypatch) -> dict:
    """Metrics of the model by seed, where `result` speaks for it."""
    monkeypatch.setattr(Generator, "result", result)
    folder = evaluate(EvaluateConfig(str(checkpoint), output=str(tmp_path / "report"), eval=settings))
    by_seed = json.loads((folder / "results.json").read_text())["model_by_seed"]
    return {seed: rows["model"]["metrics"] for seed, rows in by_seed.items()}


def moved_metrics(scores: dict, sound: dict) -> set[str]:
    """Metrics whose intervals are apart and whose values differ by their margin. Turns without end have no speed."""

    def moved(score: dict, other: dict, margin: float) -> bool:
        if "not_run" in score or "not_run" in other:
            return False
        apart = score["low"] > other["high"] or score["high"] < other["low"]
        return apart and abs(score["value"] - other["value"]) > margin

    return {name for name, margin in MARGIN.items() if name in sound and moved(scores[name], sound[name], margin)}
