"""The FLOP formula against hand-computed numbers, a count of the operations that really run, and published speeds."""

from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from csm.config import LossConfig, TransformerConfig
from csm.model.flops import GPUS, Work, find_gpu, linear_parameters, training_flops
from tests.conftest import compose_train
from tests.tiny import K, conversation, forward, rows, tiny_config, tiny_model


def test_hand_computed_numbers_of_csm_1b():
    """Per position and per frame of the released shape; the figures are worked out in the comments."""
    config = compose_train(["model=csm_1b", "data.path=x"]).model
    # 16 (2 x 2048^2 + 2 x 2048 x 512 + 3 x 2048 x 8192) and 4 (2 x 1024^2 + 2 x 1024 x 256 + 3 x 1024 x 8192)
    assert linear_parameters(config.backbone) == 973_078_528
    assert linear_parameters(config.decoder) == 111_149_056
    one_position = training_flops(config, Work(positions=1, squared_lengths=2048, c0_positions=1, frames=0))
    assert one_position.backbone == 5_838_471_168  # 6 x 973.1M
    assert one_position.backbone_attention == 805_306_368  # 12 x 16 x 2048 x 2048
    assert one_position.codebook0_head == 25_202_688  # 6 x 2048 x 2051
    assert one_position.model == 5_838_471_168 + 805_306_368 + 25_202_688
    one_frame = training_flops(config, Work(positions=0, squared_lengths=0, c0_positions=0, frames=1))
    assert one_frame.decoder == 21_340_618_752  # 6 x 32 x 111.1M
    assert one_frame.projection == 402_653_184  # 6 x 32 x 2048 x 1024
    assert one_frame.audio_head == 390_641_664  # 6 x 31 x 1024 x 2051
    assert one_frame.decoder_attention == 50_331_648  # 12 x 4 x 1024 x 32^2
    assert one_frame.hardware_full_checkpointing == one_frame.model + (21_340_618_752 + 50_331_648) / 3


@pytest.mark.parametrize("ratio", [1, 4])
def test_formula_equals_the_operations_that_run(ratio):
    """Matrix products of forward and backward pass as torch counts them, of a tiny model on one full row.

    The row is one document without padding, and attention runs as plain products (what torch counts then is the full
    square, as the formula does): nothing is left to differ. Codebook 0's head runs on all positions but the last.
    """
    model = tiny_model()
    batch = rows([[conversation(0, frame_counts=(13, 12))]], max_seq_len=36, ratio=ratio)
    assert (batch.documents == 0).all(), "no padding"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sums = forward(model, batch)
        sums.loss(LossConfig(), sums.frames).backward()
    frames = batch.slots.numel()
    assert frames == (27 if ratio == 1 else 9)
    work = Work(positions=36, squared_lengths=36**2, c0_positions=35, frames=frames)
    assert counter.get_total_flops() == training_flops(tiny_config(), work).model
    assert training_flops(tiny_config(), work).decoder_attention == 12 * 2 * 32 * K**2 * frames


@pytest.mark.parametrize(
    ("layers", "dim", "heads", "kv_heads", "ffn_dim", "vocab", "length", "tokens_per_second", "gpu", "mfu", "source"),
    [
        # MPT: ungated MLP of 4 x dim, which a gated one of 8/3 x dim equals; tied embeddings, so the head counts once
        (24, 2048, 16, 16, 5461, 50432, 2048, 45_455, "h100", 0.418, "llm-foundry MPT-1b, 8 H100"),
        (24, 2048, 16, 16, 5461, 50432, 4096, 38_535, "h100", 0.403, "llm-foundry MPT-1b, 4096 positions"),
        (32, 2560, 20, 20, 6827, 50432, 2048, 24_142, "h100", 0.437, "llm-foundry MPT-3b, 16 H100"),
        (32, 4096, 32, 32, 10923, 50432, 2048, 10_643, "h100", 0.464, "llm-foundry MPT-7b, 8 H100"),
        (22, 2048, 32, 4, 5632, 32_000, 2048, 24_000, "a100", 0.56, "TinyLlama 1.1B, A100"),
    ],
)
def test_published_speed_and_utilization_agree_with_the_formula(
    layers, dim, heads, kv_heads, ffn_dim, vocab, length, tokens_per_second, gpu, mfu, source
):
    """Plain language models: the backbone's terms and one output head, at the published tokens/s per GPU."""
    config = tiny_config()
    config.backbone = TransformerConfig(layers, dim, heads, kv_heads, ffn_dim)
    flops = training_flops(config, Work(positions=1, squared_lengths=length, c0_positions=0, frames=0)).model
    flops += 6 * dim * vocab
    peak = next(entry for entry in GPUS if entry.key == gpu).peak_flops
    assert flops * tokens_per_second / peak == pytest.approx(mfu, rel=0.01), source


def test_torchtitans_figure_counts_the_input_embedding():
    """Llama-3-8B, 8192 positions, 64 A100: 2973 tokens/s and 58.2 %. That is with the embedding among the parameters,
    which costs no operations; without it, as we count, it is 55.2 %."""
    config = tiny_config()
    config.backbone = TransformerConfig(32, 4096, 32, 8, 14336)
    flops = training_flops(config, Work(positions=1, squared_lengths=8192, c0_positions=0, frames=0)).model
    table = 6 * 4096 * 128_256
    assert (flops + 2 * table) * 2973 / 312e12 == pytest.approx(0.582, rel=0.005)
    assert (flops + table) * 2973 / 312e12 == pytest.approx(0.552, rel=0.005)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100_40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", "h100_nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_device_names_find_their_processor(name, key):
    gpu = find_gpu(name)
    assert gpu is not None and gpu.key == key


def test_unknown_devices_have_no_peak():
    assert find_gpu("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert find_gpu("Tesla K80") is None
    assert next(gpu for gpu in GPUS if gpu.key == "h100").peak_flops == 989.4e12
