"""The CUDA versions of the model's parts against the plain ones that they replace, on the CPU: values and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import LoraConfig, LossConfig
from csm.kernels import cuda
from csm.model.csm import CSM
from csm.model.lora import apply_lora
from csm.model.transformer import attend
from tests.tiny import CODEBOOK_SIZE, conversation, forward, rows, tiny_model


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def cuda_model(lora: bool = False) -> CSM:
    model = tiny_model()
    if lora:
        apply_lora(model, LoraConfig(rank=3, train_modules=["audio_embeddings", "codebook0_head"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def gradients(model: CSM) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of every codebook, and all gradients."""
    batch = rows([[conversation(i, (6 + i, 9))] for i in range(3)], ratio=4)
    sums = forward(model, batch)
    sums.loss(LossConfig(), 20.0).backward()
    return sums.losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        limit = tolerance * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=limit, rtol=0, msg=name)


@pytest.mark.parametrize("lora", [False, True])
def test_installed_versions_compute_what_the_plain_model_does(lora):
    model = cuda_model(lora)
    losses, expected = gradients(cuda_model(lora))
    cuda.install(model)
    assert {"CudaCSM", "CudaAttention", "CudaFeedForward", "PaddedHead"} <= {type(m).__name__ for m in model.modules()}
    assert list(model.state_dict()) == list(cuda_model(lora).state_dict())
    found_losses, found = gradients(model)
    torch.testing.assert_close(found_losses, losses, atol=0, rtol=1e-6)
    assert_same(found, expected, 1e-6)


def linear_layers(graph: torch.fx.GraphModule) -> int:
    return sum(node.target is torch._C._nn.linear for node in graph.graph.nodes)


@pytest.mark.parametrize(("lora", "layers"), [(False, 4), (True, 21)])
def test_joined_projections_of_compiled_blocks_equal_separate_ones(lora, layers):
    """Under autocast a block has four products in place of seven; with adapters it keeps the 21 of its layers."""
    results, counts = [], []

    def count(graph, inputs):
        counts.append(linear_layers(graph))
        return graph

    for installed in (False, True):
        model = cuda_model(lora)
        if installed:
            cuda.install(model)
            for block in (*model.backbone.layers, *model.decoder.layers):
                block.compile(fullgraph=True, dynamic=False, backend=count)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(model)[1])
    assert set(counts) == {layers}
    expected, found = results
    assert_same(
        {n: g for n, g in found.items() if "layers" in n}, {n: g for n, g in expected.items() if "layers" in n}, 0.02
    )


def test_padded_heads_give_the_logits_and_gradients_of_the_heads():
    """bf16 heads of 16 ids, computed as 64: bit for bit, and no other logits come out."""
    results = []
    for installed in (False, True):
        model = tiny_model().to(torch.bfloat16)
        vocab = CODEBOOK_SIZE + 3
        assert model.config.audio_vocab_size == vocab
        if installed:
            cuda.install(model)
            assert cuda.padded_copy(model.audio_head, 2).shape == (4, 32, 64)
            assert cuda.padded_copy(model.codebook0_head.weight, 0).shape == (64, 48)
        generator = torch.Generator().manual_seed(3)
        states = torch.randn(7, 48, generator=generator).to(torch.bfloat16)
        hidden = torch.randn(4, 9, 32, generator=generator).to(torch.bfloat16).requires_grad_()
        first, others = model.codebook0_head(states), model.audio_logits(hidden)
        assert first.shape == (7, vocab) and others.shape == (4, 9, vocab)
        loss = F.cross_entropy(first.float(), torch.arange(7)) + others.float().logsumexp(-1).square().sum()
        loss.backward()
        results.append((first, others, hidden.grad, model.codebook0_head.weight.grad, model.audio_head.grad))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, atol=0, rtol=0)


def test_fp32_heads_stay_as_they_are():
    """Nothing is copied where no bf16 copy is made anyway."""
    model = tiny_model()
    cuda.install(model)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()) or tensor, lambda x: x
    ):
        model.codebook0_head(torch.ones(2, 48, requires_grad=True))
    assert model.codebook0_head.weight.data_ptr() in saved


@pytest.mark.parametrize("kind", ["mask", "causal", "step"])
def test_attention_with_repeated_heads_equals_grouped_heads(kind):
    generator = torch.Generator().manual_seed(0)
    length = 1 if kind == "step" else 11
    mask = (torch.rand(2, 1, length, 11, generator=generator) < 0.5) | torch.eye(length, 11, dtype=torch.bool)
    results = []
    for function in (attend, cuda.cuda_attend):
        random = partial(torch.randn, generator=torch.Generator().manual_seed(1))
        q, k, v = random(2, 6, length, 8), random(2, 3, 11, 8), random(2, 3, 11, 8)
        inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
        y = function(*inputs, mask if kind == "mask" else None)
        results.append((y, *torch.autograd.grad(y, inputs, y.detach().sin())))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_sorted_embedding_gradient_in_double_precision():
    """Rows that occur many times, absent codes, and a table row that nothing refers to."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(11, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    looked_up = torch.randint(0, 10, (20, 3), generator=generator)
    present = (torch.rand(20, 3, generator=generator) < 0.7).double()
    single = torch.randint(0, 10, (5, 4), generator=generator)
    summed, rows_of = cuda.SortedFrameEmbeddings.apply(table, looked_up, present, single)
    expected = (table[looked_up] * present[..., None]).sum(1), table[single]
    for found, right in zip((summed, rows_of), expected, strict=True):
        torch.testing.assert_close(found, right)
    upstream = [torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in expected]
    (gradient,) = torch.autograd.grad((summed, rows_of), table, upstream)
    (right,) = torch.autograd.grad(expected, table, upstream)
    torch.testing.assert_close(gradient, right, atol=1e-12, rtol=1e-12)
    assert not gradient[10].any() and gradient[:10].any(dim=1).all()
