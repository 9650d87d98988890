"""`csm plan`: against measured memory, hand-computed numbers, other programs' figures; and what it says to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.plan_memory import TINY, estimate, measure_in_a_process
from csm.cli import build_parser
from csm.config import LoraConfig, StrategyConfig, StrategyName
from csm.planning.activations import Precision
from csm.planning.device import GIB, microbatch_advice
from csm.planning.estimate import SAMPLE_OVERHEAD, TURN_OVERHEAD, make_plan, remedy
from csm.planning.request import read_request
from csm.planning.state import Parameters, training_state
from tests.conftest import ROOT, compose_train


def plan(*words: str):
    return make_plan(*read_request(list(words)))


@pytest.mark.slow
@pytest.mark.parametrize(("allocator", "tolerance"), [("tensors", 0.1), ("process", 0.15)])
def test_estimate_agrees_with_the_measured_peak_of_csm_tiny(allocator, tolerance):
    """Three real training steps in a process of their own: what tensors occupy, and what the process does."""
    estimated = estimate(TINY)
    measured = measure_in_a_process(TINY, 3, allocator)
    expected = estimated.peak.total if allocator == "tensors" else estimated.total
    assert measured == pytest.approx(expected, rel=tolerance)
    assert measured > 1.5 * 16 * 7.74e6, "more than weights, gradients and moments: activations are in it"


def test_hand_computed_numbers_of_csm_1b():
    """1.553B parameters: 4 + 4 + 8 bytes each; 2048 positions to a row."""
    result = plan("model=csm_1b", "gpu=h100", "data.global_batch_size=16", "data.micro_batch_size=4", "hours=1000000")
    assert result.parameters == pytest.approx(1552.8e6, rel=1e-4)
    peak = result.memory["none"].peak
    assert result.microbatches == 4 and peak.gradients >= 4 * result.parameters, "gradients of earlier microbatches"
    assert peak.weights + peak.optimizer == 12 * result.parameters
    assert peak.casts == 2 * (result.parameters - 262_668_288 - 32 * 2051 * 2048)
    assert result.positions_per_step == 16 * 2048
    assert result.decoder_frames_per_step == 16 * 128
    # research: 49k positions/s at 40 % MFU, and 315 H100-hours for a million hours of audio
    assert result.positions_per_second == pytest.approx(49_000, rel=0.02)
    assert result.gpu_hours == pytest.approx(315, rel=0.02)
    assert result.days == pytest.approx(315 / 24, rel=0.02)
    assert result.codes_storage == 1e6 * 3600 * 12.5 * 64
    assert result.checkpoint_storage == 12 * result.parameters


def test_recomputation_and_sharding_save_memory():
    single = plan("model=csm_3b", "gpu=h100").memory
    assert single["none"].total > single["selective"].total > single["full"].total
    totals = [
        plan("model=csm_3b", "gpus=8", "data.micro_batch_size=1", f"strategy={name}").memory["none"].total
        for name in ("ddp", "deepspeed_zero2", "fsdp", "fsdp_offload")
    ]
    assert sorted(totals, reverse=True) == totals
    offload = plan("model=csm_3b", "gpus=16", "strategy=fsdp_offload", "data.micro_batch_size=1")
    assert offload.nodes == 2 and offload.host_memory_per_node == 16 * offload.parameters / 2


def test_accumulation_keeps_gradients():
    """Whole ones under FSDP, unless every microbatch's are summed at once; DDP's exist all the time."""
    words = ["model=csm_3b", "gpus=8", "data.micro_batch_size=1"]
    peak = {}
    for strategy in ("ddp", "fsdp"):
        for rows in (8, 16):
            peak[strategy, rows] = (
                plan(*words, f"strategy={strategy}", f"data.global_batch_size={rows}").memory["none"].peak
            )
    count = Parameters.of(compose_train([*words[:1], "data.path=x"]).model, LoraConfig()).count
    assert peak["ddp", 8].gradients >= 4 * count
    assert peak["fsdp", 8].gradients < 4 * count / 8 and peak["fsdp", 16].gradients >= 4 * count
    reduced = plan(*words, "strategy=fsdp", "data.global_batch_size=16", "strategy.reduce_every_microbatch=true")
    assert reduced.memory["none"].peak.gradients < 8 * count / 8


def test_fsdp_state_shrinks_as_torchtitan_published():
    """Llama-3.1-8B, FSDP, selective recomputation: 82.4 GiB on 8 GPUs, 67.0 GiB on 128; the batch on a GPU is the same,
    so the difference is the share of 8.03B parameters' weights, gradients and moments."""
    parameters = Parameters.of(compose_train(["model=csm_8b", "data.path=x"]).model, LoraConfig())
    llama = 8_030_261_248

    def state(devices: int) -> float:
        state = training_state(StrategyConfig(StrategyName.fsdp), parameters, devices, Precision.bf16, False)
        per_parameter = (state.weights + state.optimizer) / parameters.count + state.gradient_share
        return per_parameter * llama / GIB

    assert state(8) - state(128) == pytest.approx(82.4 - 67.0, rel=0.1)


def test_deepspeed_state_agrees_with_deepspeeds_own_estimate():
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    parameters = Parameters.of(compose_train(["model=csm_1b", "data.path=x"]).model, LoraConfig())
    count = parameters.count

    def state(name: StrategyName) -> float:
        state = training_state(StrategyConfig(name), parameters, 16, Precision.bf16, False)
        return state.weights + state.optimizer + state.gradient_share * count

    _, theirs = estimate_zero2_model_states_mem_needs(count, 8, 2, cpu_offload=False)
    theirs -= 2 * count / 16  # bf16 gradients of a rank's part, which fp32 sums replace (test_recorded_peaks.py)
    assert state(StrategyName.deepspeed_zero2) == pytest.approx(theirs, rel=0.01)
    _, theirs, _ = estimate_zero3_model_states_mem_needs(count, 0, 8, 2, False, False, False)
    assert state(StrategyName.deepspeed_zero3) == pytest.approx(theirs, rel=0.15)


def test_adapters_have_little_state():
    full, adapters = plan("model=csm_1b", "gpu=a100"), plan("experiment=finetune_voice", "gpu=a100")
    assert adapters.trained_parameters < 0.05 * full.trained_parameters
    assert adapters.memory["none"].peak.optimizer == 8 * adapters.trained_parameters
    assert any("adapters" in note for note in adapters.notes)


def test_storage_agrees_with_a_real_dataset(small_dataset: Path):
    """Assumed bytes per conversation and per turn, applied to the demo's; all but the zeros at the tars' ends."""
    index = pq.read_table(small_dataset / "index.parquet")
    turns, text, frames = (pc.sum(index[name]).as_py() for name in ("n_turns", "text_bytes", "n_frames"))
    expected = frames * 10 + index.num_rows * SAMPLE_OVERHEAD + turns * TURN_OVERHEAD + text
    shards = 0
    for file in small_dataset.glob("*.tar"):
        with tarfile.open(file) as tar:
            shards += sum(512 + -(-member.size // 512) * 512 for member in tar)
    assert expected == pytest.approx(shards, rel=0.05)
    planned = plan("model=csm_tiny", "codec.num_codebooks=5", "hours=1")
    assert planned.codes_storage == 3600 * 12.5 * 10
    assert 1.2 * planned.codes_storage < planned.shards_storage < 2 * planned.codes_storage


def test_a_batch_that_cannot_be_dealt_out_is_rounded_up_and_said():
    result = plan("model=csm_8b", "gpus=64", "strategy=fsdp", "data.micro_batch_size=2")
    assert result.global_batch_size == 128 and result.microbatches == 1
    assert "data.global_batch_size=128" in result.notes[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_zero2"])
def test_the_largest_microbatch_fits_and_the_next_one_does_not(strategy):
    words = ["model=csm_1b", "gpus=2", "gpu=a100_40gb", f"strategy={strategy}", "data.global_batch_size=96"]
    config, options = read_request([*words, "data.micro_batch_size=1"])
    by_size = {}
    for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48):  # divisors of a rank's rows
        config.data.micro_batch_size = size
        by_size[size] = make_plan(config, options).memory
    for level, memory in by_size[1].items():
        fitting = [size for size, planned in by_size.items() if planned[level].fits]
        assert memory.largest_micro_batch_size == max(fitting, default=None)
    assert plan(*words, "gpu=cpu", "data.micro_batch_size=1").memory["none"].largest_micro_batch_size is None


def test_a_run_on_a_gpu_is_told_how_many_rows_would_fit():
    config, _ = read_request(["model=csm_1b", "strategy=ddp", "data.global_batch_size=64", "data.micro_batch_size=2"])
    planned = plan("model=csm_1b", "strategy=ddp", "data.global_batch_size=64", "data.micro_batch_size=2", "gpus=8")
    advice = microbatch_advice(config, 79.1 * GIB, 8)
    assert f"the largest that fits is {planned.memory['none'].largest_micro_batch_size}" in advice
    assert f"needs {planned.memory['none'].total / GIB:.0f} of 79 GiB" in advice
    assert microbatch_advice(config, 8 * GIB, 8).endswith("not even 1")


def test_the_remedy_is_one():
    words = ["model=csm_1b", "gpu=rtx4090", "gpus=2", "strategy=ddp"]
    config, options = read_request(words)
    result = make_plan(config, options)
    assert not any(memory.fits for memory in result.memory.values())
    change = remedy(config, options, result)
    assert change is not None
    changed = plan(*words, *change.split())
    assert any(memory.fits for memory in changed.memory.values())
    too_large = ["model=csm_8b", "gpu=rtx4090", "data.max_seq_len=131072"]
    config, options = read_request(too_large)
    assert remedy(config, options, make_plan(config, options)) is None


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "csm.cli", "plan", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_command_prints_tables_and_json(capsys):
    def printed(*words: str) -> str:
        arguments = build_parser().parse_args(["plan", *words])
        arguments.run(arguments)
        return capsys.readouterr().out

    tables = printed("model=csm_1b", "gpus=8", "gpu=h100", "strategy=ddp", "data.micro_batch_size=1")
    assert "Fits into h100" in tables and "optimizer state" in tables
    record = json.loads(printed("--json", "model=csm_8b", "gpu=l4", "hours=10"))
    assert record["options"]["hours"] == 10 and record["memory"]["full"]["fits"] is False
    assert record["memory"]["full"]["total"] > record["memory"]["full"]["available"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gpu=h1000"], "h1000 is not in the table; choose from cpu, gb200"),
        (["gpus=4"], "choose strategy=ddp or strategy=fsdp"),
        (["strategy=zero9"], "zero9"),
        (["mfu=40"], "mfu=40.0 is a share"),
        (["hours=0"], "hours=0.0 must be greater than 0"),
        (["trainer.devices=auto"], "give gpus=N"),
        (["trainer.precision=16-mixed"], "choose from 32-true, bf16-mixed, auto"),
        (["model=csm_9b"], "csm_9b"),
        (["optim.bogus=1"], "bogus"),
    ],
)
def test_mistakes_are_named(words, expected):
    with pytest.raises(Exception, match=expected):
        plan(*words)


def test_a_mistake_is_one_line():
    result = run("gpus=many")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.strip().splitlines()) == 1
