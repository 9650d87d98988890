"""Tables and figures of the whitepaper, the comparison and the scaling page follow from the code, and formulas hold."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch

from csm.compose import TRAIN
from csm.config import CodeLayout
from csm.data.packing import select_slots
from csm.inference.cache import KVCache
from csm.inference.frame_step import FrameStep, StepShape
from csm.inference.weights import DecodingStack, DecodingWeights
from csm.model.csm import CSM
from csm.planning.estimate import make_plan
from csm.planning.request import read_request
from docs.generate_figures import TABLES, files, row_flops, seconds_of_row
from docs.scaling_tables import differences, gpu_hours, plan_of
from docs.tables import config_of
from tests.conftest import ROOT
from tests.tiny import tiny_config


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_tables_and_figures_are_up_to_date():
    for path, content in files().items():
        assert path.read_text(encoding="utf-8") == content, "python -m docs.generate_figures writes it anew"


class Shape(NamedTuple):
    layers: int
    width: int
    keys: int  # width of keys and of values
    feed_forward: int

    @property
    def matrices(self) -> int:
        return self.layers * (2 * self.width**2 + 2 * self.width * self.keys + 3 * self.width * self.feed_forward)

    @property
    def norms(self) -> int:
        return (2 * self.layers + 1) * self.width


SHAPES = {
    "csm_1b": (Shape(16, 2048, 512, 8192), Shape(4, 1024, 256, 8192)),
    "csm_3b": (Shape(28, 3072, 1024, 8192), Shape(6, 1536, 384, 8192)),
    "csm_8b": (Shape(32, 4096, 1024, 14336), Shape(8, 1536, 384, 6912)),
}
"""Written down apart from the configurations: Llama 3's backbones, with Sesame's decoder, a guess, and MisoTTS's."""


def numbers(table: str, row: str) -> list[float]:
    line = next(line for line in TABLES[table]().splitlines() if line.startswith(f"| {row} |"))
    return [float(re.sub("[*,%s]", "", cell)) for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize("model", SHAPES)
def test_parameters_computed_by_hand(model):
    backbone, decoder = SHAPES[model]
    parts = {
        "text embeddings": 128_256 * backbone.width,
        "audio embeddings": 32 * 2051 * backbone.width,
        "backbone": backbone.matrices + backbone.norms,
        "codebook-0 head": 2051 * backbone.width,
        "projection": backbone.width * decoder.width,
        "depth decoder": decoder.matrices + decoder.norms,
        "heads of codebooks 1..31": 31 * 2051 * decoder.width,
    }
    column = list(SHAPES).index(model)
    for part, count in parts.items():
        assert numbers("parameters", part)[column] == pytest.approx(count / 1e6, abs=0.05), part
    assert numbers("parameters", "**all**")[column] == pytest.approx(sum(parts.values()) / 1e6, abs=0.05)


@pytest.mark.parametrize("model", SHAPES)
def test_work_computed_by_hand(model):
    """GFLOPs of training on one frame of a row of 2048, and what a frame reads when it is generated."""
    backbone, decoder = SHAPES[model]
    large = 6 * backbone.matrices + 12 * backbone.layers * backbone.width * 2048
    first_head = 6 * backbone.width * 2051
    small = 6 * (32 * (decoder.matrices + backbone.width * decoder.width) + 31 * decoder.width * 2051)
    small += 12 * decoder.layers * decoder.width * 32**2
    for ratio in (1, 16):
        expected = [large, first_head, small / ratio, large + first_head + small / ratio]
        assert numbers("training work", f"`{model}`, 1/{ratio}")[:4] == pytest.approx(
            [value / 1e9 for value in expected], abs=0.005
        )
    read = numbers("generation traffic", f"`{model}`")[:2]
    assert read[0] == pytest.approx(2 * (backbone.matrices + backbone.width * 2051) / 1e9, abs=0.005)
    steps = 31 * (decoder.matrices + decoder.width * 2051) + backbone.width * decoder.width
    assert read[1] == pytest.approx(2 * steps / 1e9, abs=0.005)


def test_seconds_of_a_row():
    """2047 frames and an end at 12.5 a second; with text, every second has 3 positions more."""
    by_hand = {
        "depth": [2047 / 12.5, 2047 / 15.5],
        "delay": [2016 / 12.5, 2016 / 15.5],
        "flat": [2016 / 400, 2016 / 403],
    }
    for layout, seconds in by_hand.items():
        assert numbers("row length", f"`{layout}`") == pytest.approx(seconds, abs=0.05)
    assert f"2048 positions, {seconds_of_row(CodeLayout.depth, 0):.1f} s" in page("comparison.md")


def test_passes_of_the_depth_decoder(monkeypatch):
    with torch.device("meta"):
        model = CSM(tiny_config(codebooks=32))
    weights = DecodingWeights(model, share=False)
    step = FrameStep(weights, KVCache(model.config.backbone, 4, 160, weights.dtype, weights.device), 32)
    calls, call = Counter(), DecodingStack.__call__

    def counted(stack, *inputs):
        calls["depth" if stack is weights.decoder else "backbone"] += 1
        return call(stack, *inputs)

    monkeypatch.setattr(DecodingStack, "__call__", counted)
    with torch.no_grad():
        step(StepShape(batch=3, attended=160, candidates=5))
    assert calls["backbone"] == 1
    assert f"in {calls['depth']} passes" in page("whitepaper.md")


def test_amortization_divides_the_decoders_work():
    config = config_of("csm_1b")
    full, sixteenth = row_flops(config, 1), row_flops(config, 16)
    assert sixteenth.decoder == full.decoder / 16 and sixteenth.backbone == full.backbone


def test_variance_of_the_amortized_sum_is_that_of_sampling_without_replacement():
    rng = np.random.default_rng(0)
    length, slots, draws = 300, 40, 4_000
    targets, eos = torch.zeros(length, dtype=torch.bool), torch.zeros(length, dtype=torch.bool)
    targets[20:] = True
    eos[[80, 160, 299]] = True
    losses = rng.gamma(4.0, 0.5, size=length)
    sums = np.empty(draws)
    for i in range(draws):
        chosen, weights = select_slots(targets, eos, slots, rng)
        sums[i] = (losses[chosen.numpy()] * weights.numpy()).sum()
    others = losses[(targets & ~eos).numpy()]
    number, drawn = len(others), slots - 3
    expected = number**2 * (1 - drawn / number) * others.var(ddof=1) / drawn
    assert sums.mean() == pytest.approx(losses[targets.numpy()].sum(), rel=0.005)
    assert sums.var() == pytest.approx(expected, rel=0.1)


def test_published_error_rates_of_csm_1b_differ_by_what_the_page_says():
    section = page("comparison.md").partition("## Published numbers of CSM-1B")[2].partition("\n## ")[0]
    rows = [line.split("|")[3] for line in section.splitlines() if line.startswith("|")]
    rates = [float(rate) for row in rows for rate in re.findall(r"WER ([\d.]+)", row)]
    assert (min(rates), max(rates)) == (2.66, 32.32)
    assert round(max(rates) / min(rates)) == 12 and "factor of\ntwelve" in section


def test_interval_of_an_error_rate_on_seed_tts_eval():
    """1,088 items with 11,808 words, were all words independent."""
    half = 1.96 * (0.02 * 0.98 / 11_808) ** 0.5
    assert f"at least ± {100 * half:.2f} points" in page("comparison.md")


def test_projection_is_what_csm_plan_says():
    assert plan_of("csm_1b", 64).gpu_hours == pytest.approx(1e6 * 3600 * 15.5 / 49_159 / 3600, rel=1e-3)
    words = (
        "model=csm_1b gpus=64 gpu=b200 strategy=ddp hours=1000000 data.global_batch_size=512 data.micro_batch_size=8"
    )
    assert make_plan(*read_request(words.split())).gpu_hours == pytest.approx(gpu_hours("csm_1b", "b200"))


def test_what_the_scaling_page_says_of_the_measured_curves():
    text = page("scaling.md")
    config = TRAIN.options(TRAIN.compose(["experiment=proving_desk", "data.path=none"]))
    first = config.trainer.max_steps - config.optim.decay_steps
    positions = first * config.data.global_batch_size * config.data.max_seq_len
    assert f"from step {first:,} ({positions / 1e6:.1f} million positions) on" in text.replace("\n  ", " ")
    assert f"losses {differences('val/loss_c0')[-1]:.2f} nats apart" in text
