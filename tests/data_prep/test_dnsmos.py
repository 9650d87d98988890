"""DNSMOS in batches, compared with the published program, and on clean and noisy speech."""

import numpy as np
import pytest
from heard import demo_recordings, draft, item
from speechmos import dnsmos

from csm.judges.dnsmos import WINDOW, Dnsmos, check_provider, provider_of, split
from csm.judges.hub import ModelUnavailable
from data_prep.config import ScoreConfig
from data_prep.stages.score import ScoreStage

RATE = 16_000
HOP = round(9.01 * RATE)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return np.concatenate([audio for _, audio in sorted(demo_recordings().items())][:6])


def published(audio: np.ndarray) -> list[float]:
    scores = dnsmos.run(audio, RATE)
    return [float(scores[name]) for name in ("sig_mos", "bak_mos", "ovrl_mos")]


def test_equals_the_published_program_on_single_windows(speech):
    """Clips for which the original hears one window: of 9.01 to 10 s, and of half that, which it repeats once."""
    rng = np.random.default_rng(0)
    noisy = speech + rng.normal(0, 0.02, len(speech)).astype(np.float32)
    clips = [noisy[:WINDOW], speech[: round(4.9 * RATE)]]
    ours = Dnsmos(9.01)(clips)
    np.testing.assert_allclose(ours, [published(clip) for clip in clips], atol=1e-4)


@pytest.mark.slow
def test_batched_equals_one_by_one(speech):
    clips = [speech[first : first + round(seconds * RATE)] for first, seconds in
             ((0, 0.7), (30_000, 14.2), (90_000, 3.3))]  # fmt: skip
    model = Dnsmos(4.5)
    batched = model(clips)
    np.testing.assert_allclose(batched, np.concatenate([model([clip]) for clip in clips]), atol=1e-5)
    windows = [np.mean([model([window])[0] for window in split(clip, model.hop)], axis=0) for clip in clips]
    np.testing.assert_allclose(batched, windows, atol=1e-5)


@pytest.mark.parametrize(("seconds", "windows"), [(1, 1), (9.01, 1), (13.4, 1), (13.6, 2), (22.5, 2), (60, 7)])
def test_windows_begin_and_end_with_the_clip(seconds, windows):
    clip = np.arange(round(seconds * RATE), dtype=np.float32)
    parts = split(clip, HOP)
    assert len(parts) == windows and all(len(part) == WINDOW for part in parts)
    assert parts[0][0] == 0
    if windows > 1:
        assert parts[-1][-1] == clip[-1]
        assert min(np.diff([part[0] for part in parts])) >= 4.5 * RATE


def test_noise_lowers_the_scores(speech, tmp_path):
    """The same speech clean, with noise 20 dB below it, and 5 dB below: every scale falls, noise's the most."""
    clean = speech[: 2 * WINDOW]
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    level = np.sqrt(np.mean(clean**2))
    samples = np.stack([clean, clean + level * 10 ** (-20 / 20) * noise, clean + level * 10 ** (-5 / 20) * noise])
    seconds = len(clean) / RATE
    turns = [draft(channel, 0.0, seconds, channel=channel) for channel in range(3)]
    heard = item(tmp_path / "a.wav", samples, RATE, turns)
    (scores,) = ScoreStage(ScoreConfig(dnsmos=True, fingerprint=False)).process([heard])
    clear, hiss, loud = scores.turns
    assert clear.ovrl > hiss.ovrl + 0.3 > loud.ovrl + 0.6
    assert clear.bak > hiss.bak + 0.5 and clear.bak > loud.bak + 1.5
    assert clear.sig > loud.sig


def test_hop_must_not_be_short():
    with pytest.raises(ValueError, match=r"dnsmos_hop_seconds=1 must be at least 4\.5"):
        ScoreStage(ScoreConfig(dnsmos=True, dnsmos_hop_seconds=1.0))


def test_the_second_gpu_is_the_second_gpu():
    assert provider_of("cpu") == ("CPUExecutionProvider", {})
    assert provider_of("cuda") == ("CUDAExecutionProvider", {"device_id": 0})
    assert provider_of("cuda:1") == ("CUDAExecutionProvider", {"device_id": 1})


def test_a_session_that_fell_back_to_the_cpu_is_refused():
    """As onnxruntime-gpu makes one where CUDA's libraries do not load."""
    session = Dnsmos(9.01)._session
    with pytest.raises(ModelUnavailable, match=r"DNSMOS on cuda: onnxruntime cannot load its CUDAExec"):
        check_provider(session, provider_of("cuda")[0], "cuda")
