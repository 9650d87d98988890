"""The plan beside peaks recorded on a CUDA device that computes nothing: torch 2.9.1's allocator over real training
steps whose kernels are not run (docs/benchmarks.md, GPUs). GiB of tensors, without what the allocator and CUDA hold."""

from __future__ import annotations

import pytest

from csm.planning.device import GIB
from csm.planning.estimate import make_plan
from csm.planning.request import read_request

CSM_1B = ["model=csm_1b", "gpu=h100", "data.max_seq_len=2048", "data.micro_batch_size=8", "text_tokens_per_second=2.3"]
ONE, TWO = "data.global_batch_size=8", "data.global_batch_size=16"  # microbatches in a step, on one device
RECORDED = {
    "single": ([ONE], 45.94),
    "selective": ([ONE, "trainer.activation_checkpointing=selective"], 35.77),
    "full": ([ONE, "trainer.activation_checkpointing=full"], 25.27),
    "ddp": ([TWO, "strategy=ddp"], 51.06),
    "ddp, 259 codes": ([TWO, "strategy=ddp", "codec.codebook_size=256"], 48.26),
    "fsdp": ([TWO, "strategy=fsdp"], 48.37),
    "fsdp, 259 codes": ([TWO, "strategy=fsdp", "codec.codebook_size=256"], 45.01),
    "fsdp, one microbatch": ([ONE, "strategy=fsdp"], 43.25),
    "zero2": ([TWO, "strategy=deepspeed_zero2"], 51.14),
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_plan_is_within_a_tenth_of_what_was_recorded(name):
    words, recorded = RECORDED[name]
    config, options = read_request([*CSM_1B, *words])
    level = config.trainer.activation_checkpointing.value
    assert make_plan(config, options).memory[level].peak.total / GIB == pytest.approx(recorded, rel=0.1)
