"""The CUDA versions of the model's parts on a GPU: kernels that are chosen, values and gradients, limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from csm.config import ActivationCheckpointing, CSMConfig, LossConfig, TrainConfig, TrainerConfig, TransformerConfig
from csm.kernels import cuda
from csm.model.backward import LocalEngine, backward_in_chunks
from csm.model.csm import CSM
from csm.parallel.plan import attention_mask, parallelize
from tests.tiny import CODEBOOK_SIZE, TEXT_VOCAB, K, conversation, inputs, rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
WIDE = CSMConfig(  # heads 64 wide, as csm_1b's backbone
    backbone=TransformerConfig(layers=2, dim=256, heads=4, kv_heads=2, ffn_dim=320),
    decoder=TransformerConfig(layers=2, dim=128, heads=2, kv_heads=1, ffn_dim=192),
    text_vocab_size=TEXT_VOCAB,
    codebook_size=CODEBOOK_SIZE,
    num_codebooks=K,
    max_seq_len=384,
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(device: str, compiled: bool, precision: str, recompute: ActivationCheckpointing) -> dict[str, Tensor]:
    """Of a step on `device`, prepared as training prepares it."""
    torch.manual_seed(0)
    model = CSM(WIDE)
    if device == "cuda":
        cuda.install(model)
    parallelize(model, None, recompute, compiled, bf16=False, cpu_offload=False)
    model.to(device)
    trainer = TrainerConfig(precision=precision, compile=compiled, max_steps=1)
    config = TrainConfig(model=WIDE, loss=LossConfig(decoder_chunk=8), trainer=trainer)
    documents = [[conversation(i, (40 + i, 17)) for i in range(3)], [conversation(9, (5,))]]
    batch = rows(documents, max_seq_len=384, ratio=8).to(device)
    arguments = inputs(batch) | {"attention_mask": attention_mask(batch, config)}

    class Engine(LocalEngine):
        def __call__(self, *args, **kwargs):
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                return super().__call__(*args, **kwargs)

    backward_in_chunks(Engine(model), arguments, config.loss, 20.0)
    return {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", list(ActivationCheckpointing))
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 0.05)])
@pytest.mark.parametrize("compiled", [True, False])
def test_gradients_on_a_gpu_equal_those_of_the_plain_model_on_the_cpu(compiled, precision, tolerance, recompute):
    """In fp32, to what TF32-free kernels round; in bf16, to its rounding."""
    expected = gradients("cpu", False, "32-true", ActivationCheckpointing.none)
    found = gradients("cuda", compiled, precision, recompute)
    for name, gradient in expected.items():
        error = torch.linalg.vector_norm(found[name] - gradient) / torch.linalg.vector_norm(gradient)
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_never_takes_the_math_kernel(masked, dtype):
    """With a dense mask as without one, forward and backward."""
    q = torch.randn(2, 8, 256, 64, device="cuda", dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, 2, 256, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.ones(256, 256, dtype=torch.bool, device="cuda").tril()[None, None].expand(2, 1, -1, -1)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):  # it would be an error
        y = cuda.cuda_attend(q, k, v, mask if masked else None)
        y.sum().backward()
    assert k.grad.shape == k.shape


def test_narrow_heads_attend_with_a_dense_mask():
    assert cuda.flex_limit(64, True) is None and "at least 16 wide" in cuda.flex_limit(8, True)
    config = TrainConfig(model=WIDE, trainer=TrainerConfig(precision="bf16-mixed", max_steps=1))
    batch = rows([[conversation(1)]]).to("cuda")
    assert not isinstance(attention_mask(batch, config), Tensor)
    narrow = replace(WIDE, backbone=replace(WIDE.backbone, heads=32))
    assert isinstance(attention_mask(batch, replace(config, model=narrow)), Tensor)


def test_sorted_embedding_gradient_on_a_gpu():
    """As on the CPU, in fp32 and bf16, and the same in every run."""
    generator = torch.Generator().manual_seed(5)
    looked_up = torch.randint(0, 50, (300, 8), generator=generator)
    single = torch.randint(0, 50, (40, 7), generator=generator)
    present = (torch.rand(300, 8, generator=generator) < 0.7).float()
    upstream = torch.randn(300, 64, generator=generator), torch.randn(40, 7, 64, generator=generator)
    found = []
    for device, dtype in (
        ("cpu", torch.float32),
        ("cuda", torch.float32),
        ("cuda", torch.float32),
        ("cuda", torch.bfloat16),
    ):
        table = torch.zeros(50, 64, device=device, dtype=dtype, requires_grad=True)
        outputs = cuda.SortedFrameEmbeddings.apply(
            table, looked_up.to(device), present.to(device, dtype), single.to(device)
        )
        (gradient,) = torch.autograd.grad(outputs, table, [part.to(device, dtype) for part in upstream])
        found.append(gradient.cpu().float())
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-5)
    assert torch.equal(found[1], found[2])
    torch.testing.assert_close(found[3], found[0], atol=0.2, rtol=0.02)
