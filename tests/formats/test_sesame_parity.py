"""Weights in Sesame's layout, computed with in Sesame's way, give what our model gives.

Sesame's code runs on torchtune's Llama, which turns neighbouring pairs (2i, 2i+1) by complex rotation; it is written
out here, without a cache, from the formulas.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import TransformerConfig
from csm.formats.tensors import lazy
from csm.formats.weight_names import from_sesame, interleave, split_halves, to_sesame
from csm.model.transformer import rope_frequencies
from tests.tiny import conversation, tiny_model


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """x [S, H, E]: element pairs as complex numbers, turned by position * frequency."""
    angles = torch.arange(x.shape[0])[:, None].float() * frequencies  # [S, E/2]
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def sesame_stack(w: dict[str, Tensor], stack: str, config: TransformerConfig, x: Tensor, frequencies: Tensor) -> Tensor:
    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * scale

    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for n in range(config.layers):
        p = f"{stack}.layers.{n}."
        h = norm(x, w[p + "sa_norm.scale"])
        q = rotate((h @ w[p + "attn.q_proj.weight"].T).unflatten(-1, (config.heads, -1)), frequencies)
        k = rotate((h @ w[p + "attn.k_proj.weight"].T).unflatten(-1, (config.kv_heads, -1)), frequencies)
        v = (h @ w[p + "attn.v_proj.weight"].T).unflatten(-1, (config.kv_heads, -1))
        k, v = (t.repeat_interleave(config.heads // config.kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khe->qhe", weights, v).flatten(1) @ w[p + "attn.output_proj.weight"].T
        h = norm(x, w[p + "mlp_norm.scale"])
        x = x + (F.silu(h @ w[p + "mlp.w1.weight"].T) * (h @ w[p + "mlp.w3.weight"].T)) @ w[p + "mlp.w2.weight"].T
    return norm(x, w[f"{stack}.norm.scale"])


@torch.no_grad()
def test_logits_as_sesame_computes_them():
    model = tiny_model(seed=8).eval()
    config, frames = model.config, conversation(2)
    w = {name: tensor.read() for name, tensor in to_sesame(lazy(model.state_dict()), config).items()}
    vocab, books = config.audio_vocab_size, config.num_codebooks

    codes = frames.tokens[:, :-1] + torch.arange(books) * vocab
    parts = torch.cat((w["audio_embeddings.weight"][codes], w["text_embeddings.weight"][frames.tokens[:, -1:]]), dim=1)
    embedded = (parts * frames.mask[..., None]).sum(1)  # [T, D]
    head_dims = [stack.dim // stack.heads for stack in (config.backbone, config.decoder)]
    frequencies = [rope_frequencies(dim, config.rope) for dim in head_dims]
    states = sesame_stack(w, "backbone", config.backbone, embedded, frequencies[0])
    ours = model.backbone_states(frames.tokens[None], frames.mask[None], torch.arange(len(frames))[None])[0]
    torch.testing.assert_close(
        ours @ model.codebook0_head.weight.T, states @ w["codebook0_head.weight"].T, atol=1e-4, rtol=1e-5
    )

    for position in (6, 20):  # the frames at two positions, codebook after codebook
        frame = w["audio_embeddings.weight"][codes[position, :-1]]
        inputs = torch.cat((states[position - 1][None], frame)) @ w["projection.weight"].T
        hidden = sesame_stack(w, "decoder", config.decoder, inputs, frequencies[1])
        expected = torch.stack([hidden[i] @ w["audio_head"][i - 1] for i in range(1, books)])
        found = model.decoder_logits(ours[position - 1][None], frames.tokens[position, :-2][None])[:, 0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_permutation_and_round_trip_bit_for_bit():
    weight = torch.randn(6 * 8, 5)
    assert torch.equal(split_halves(interleave(weight, 6), 6), weight)
    assert torch.equal(interleave(weight, 6)[:4], weight[[0, 4, 1, 5]])  # E = 8: element i and i + 4 become neighbours
    model = tiny_model()
    theirs = to_sesame(lazy(model.state_dict()), model.config)
    back = from_sesame(theirs, model.config, "here")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name].read(), tensor) for name, tensor in model.state_dict().items())
    again = to_sesame(back, model.config)
    assert all(torch.equal(again[name].read(), tensor.read()) for name, tensor in theirs.items())
