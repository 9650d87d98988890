"""Quality, prosody and pauses on sounds whose values are known."""

import numpy as np
import pytest
import torch

from csm.audio import resample
from csm.judges.hub import ModelUnavailable
from csm.judges.measures import MEASURES, speaking_rate
from csm.judges.utmos import Utmos
from tests.demo_speech import spoken_turns

RATE = 24_000


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    return spoken_turns(["weasels"])["weasels"][1].audio  # one turn at 24 kHz


def harmonic(hertz: np.ndarray) -> torch.Tensor:
    """A buzz of a voice's pitch, which varies with time."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    return torch.from_numpy((0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32))


def test_pitch_is_measured_in_semitones():
    prosody = MEASURES["prosody"]("cpu")
    times = np.arange(2 * RATE) / RATE
    flat = prosody.measure(harmonic(np.full(len(times), 200.0)), RATE)
    assert flat["f0_mean"] == pytest.approx(12, abs=0.1)  # an octave above 100 Hz
    assert flat["f0_std"] < 0.1
    lively = prosody.measure(harmonic(200 * 2 ** (3 * np.sin(2 * np.pi * times) / 12)), RATE)
    assert lively["f0_std"] == pytest.approx(3 / np.sqrt(2), abs=0.25)  # of a sine with an amplitude of 3 semitones
    quiet = prosody.measure(0.1 * harmonic(np.full(len(times), 200.0)), RATE)
    assert quiet["energy_mean"] == pytest.approx(flat["energy_mean"] - 20, abs=0.3)


def test_pauses_are_where_they_were_put(speech):
    pauses = MEASURES["pauses"]("cpu")
    alone = pauses.measure(speech, RATE)
    silence = torch.zeros(RATE)
    padded = pauses.measure(torch.cat([silence, speech, silence, silence, speech, silence / 2]), RATE)
    assert padded["leading_silence"] == pytest.approx(alone["leading_silence"] + 1, abs=0.1)
    assert padded["longest_pause"] == pytest.approx(alone["trailing_silence"] + 2 + alone["leading_silence"], abs=0.15)
    assert padded["pauses"] == 2 * alone["pauses"] + 1
    assert padded["speech_seconds"] == pytest.approx(2 * alone["speech_seconds"], rel=0.05)
    rate = speaking_rate("x" * 30, padded)
    assert rate["articulation_rate"] == pytest.approx(30 / padded["speech_seconds"])
    assert rate["speaking_rate"] < rate["articulation_rate"]


@pytest.mark.slow
def test_quality_falls_with_noise_and_not_with_the_level(speech):
    noise = torch.randn(len(speech), generator=torch.Generator().manual_seed(0)) * speech.square().mean().sqrt()
    for name, value in (("dnsmos", "dnsmos_ovrl"), ("distillmos", "distillmos")):
        measure = MEASURES[name]("cpu")
        assert set(measure.values) == measure.measure(speech, RATE).keys()
        clean, quiet, noisy = (measure.measure(x, RATE)[value] for x in (speech, 0.05 * speech, speech + noise))
        assert 1 <= noisy < clean - 0.3 < 5
        assert quiet == pytest.approx(clean, abs=0.02)
        assert measure.describe()["packages"]


@pytest.mark.parametrize("name", sorted(MEASURES.keys() - {"utmos"}))
def test_silence_and_nothing_have_no_values(name):
    measure = MEASURES[name]("cpu")
    for audio in (torch.zeros(0), torch.zeros(RATE)):
        found = measure.measure(audio, RATE)
        assert found.keys() == set(measure.values)
        assert not any(found.values())  # None; no frame of silence is voiced
    assert speaking_rate("x", {"speech_seconds": None, "pause_seconds": None})["speaking_rate"] is None


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("dnsmos", "speechmos"),
        ("distillmos", "distillmos"),
        ("prosody", "swift_f0"),
        ("pauses", "silero_vad"),
        ("utmos", "utmos_pytorch"),
    ],
)
def test_without_its_package_a_measure_says_why(name, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ModelUnavailable, match="pip install"):
        MEASURES[name]("cpu")


def test_utmos_without_its_weights_says_so(hub_cache):
    with pytest.raises(ModelUnavailable, match="cannot be fetched from the hub"):
        MEASURES["utmos"]("cpu")


@pytest.mark.slow
def test_utmos_hears_at_16_khz_and_refuses_other_weights(speech, tmp_path):
    """With random weights: the published ones are on the hub."""
    from utmos_pytorch import UTMOSScoreTorch
    from utmos_pytorch.utmos_torch import UTMOSModel

    torch.manual_seed(0)
    state = UTMOSModel().state_dict()
    torch.save(state, tmp_path / "utmos.pt")
    utmos = Utmos(weights=tmp_path / "utmos.pt")
    expected = float(UTMOSScoreTorch(str(tmp_path / "utmos.pt")).score(resample(speech, RATE, 16_000)))
    assert utmos.measure(speech, RATE) == {"utmos": pytest.approx(expected, abs=1e-5)}
    assert utmos.measure(torch.zeros(RATE), RATE) == {"utmos": None} == utmos.measure(speech[:100], RATE)
    del state["output_layers.1.net.3.bias"]
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ModelUnavailable, match=r"other weights than UTMOS's: output_layers\.1\.net\.3\.bias differs"):
        Utmos(weights=tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match=r"cut\.pt cannot be read as UTMOS's weights"):
        Utmos(weights=tmp_path / "cut.pt")
