"""CSM as it is published in torchtune's layout (Sesame, MisoTTS, Marvis), written out from the published formulas.

torchtune's Llama turns neighbouring pairs of the rotary positions and takes norms in float32. Frames are drawn
greedily, with everything computed anew for each code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import TransformerConfig
from csm.inference.generator import Generator
from csm.model.csm import CSM

VOCAB, BOOKS = 2051, 32


def published_shapes(stacks: dict[str, TransformerConfig], text_vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, from the constructors of the published models.

    stacks: {"backbone": shape, "decoder": shape}
    """
    found: dict[str, tuple[int, ...]] = {}
    for stack, shape in stacks.items():
        width, head, ffn = shape.dim, shape.dim // shape.heads, shape.ffn_dim
        for n in range(shape.layers):
            found |= {
                f"{stack}.layers.{n}.{name}": size
                for name, size in {
                    "attn.q_proj.weight": (shape.heads * head, width),
                    "attn.k_proj.weight": (shape.kv_heads * head, width),
                    "attn.v_proj.weight": (shape.kv_heads * head, width),
                    "attn.output_proj.weight": (width, shape.heads * head),
                    "mlp.w1.weight": (ffn, width),
                    "mlp.w2.weight": (width, ffn),
                    "mlp.w3.weight": (ffn, width),
                    "sa_norm.scale": (width,),
                    "mlp_norm.scale": (width,),
                }.items()
            }
        found[f"{stack}.norm.scale"] = (width,)
    wide, narrow = stacks["backbone"].dim, stacks["decoder"].dim
    return found | {
        "text_embeddings.weight": (text_vocab, wide),
        "audio_embeddings.weight": (VOCAB * BOOKS, wide),
        "projection.weight": (narrow, wide),
        "codebook0_head.weight": (VOCAB, wide),
        "audio_head": (BOOKS - 1, narrow, VOCAB),
    }


def random_weights(stacks: dict[str, TransformerConfig], text_vocab: int) -> dict[str, Tensor]:
    """Large enough that every input matters to every output."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: 1 + 0.1 * torch.randn(shape, generator=generator)
        if len(shape) == 1
        else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in published_shapes(stacks, text_vocab).items()
    }


class PublishedCSM:
    """The published formulas over the published names."""

    def __init__(self, weights: dict[str, Tensor], stacks: dict[str, TransformerConfig]) -> None:
        self.w, self.stacks = weights, stacks

    def frequencies(self, width: int) -> Tensor:
        """torchtune's Llama3ScaledRoPE: base 500000, scale 32, low 1, high 4, of 8192 positions."""
        plain = 1.0 / 500_000 ** (torch.arange(0, width, 2).float() / width)
        wavelength = 2 * torch.pi / plain
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        between = (1 - smooth) * plain / 32 + smooth * plain
        scaled = torch.where(wavelength > 8192 / 1.0, plain / 32, between)
        return torch.where(wavelength < 8192 / 4.0, plain, scaled)

    def stack(self, name: str, x: Tensor) -> Tensor:
        """x [S, D] -> [S, D], after the final norm."""
        w, shape = self.w, self.stacks[name]
        width = shape.dim // shape.heads
        angles = torch.arange(len(x))[:, None].float() * self.frequencies(width)  # [S, E/2]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]

        def norm(x: Tensor, scale: Tensor) -> Tensor:
            return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5) * scale

        def rotate(x: Tensor) -> Tensor:  # [S, H, E], neighbouring pairs
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

        for n in range(shape.layers):
            at = f"{name}.layers.{n}."
            h = norm(x, w[at + "sa_norm.scale"])
            q = rotate(F.linear(h, w[at + "attn.q_proj.weight"]).view(len(x), shape.heads, width))
            k = rotate(F.linear(h, w[at + "attn.k_proj.weight"]).view(len(x), shape.kv_heads, width))
            v = F.linear(h, w[at + "attn.v_proj.weight"]).view(len(x), shape.kv_heads, width)
            heads = []
            for head in range(shape.heads):
                of = head // (shape.heads // shape.kv_heads)
                scores = q[:, head] @ k[:, of].T / width**0.5
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
                heads.append(scores.softmax(-1) @ v[:, of])
            x = x + F.linear(torch.cat(heads, dim=-1), w[at + "attn.output_proj.weight"])
            h = norm(x, w[at + "mlp_norm.scale"])
            gated = F.silu(F.linear(h, w[at + "mlp.w1.weight"])) * F.linear(h, w[at + "mlp.w3.weight"])
            x = x + F.linear(gated, w[at + "mlp.w2.weight"])
        return norm(x, w[f"{name}.norm.scale"])

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens, mask [S, K+1] -> [S, D]"""
        audio = self.w["audio_embeddings.weight"][tokens[:, :-1] + torch.arange(BOOKS) * VOCAB]
        text = self.w["text_embeddings.weight"][tokens[:, -1]][:, None]
        return (torch.cat((audio, text), dim=1) * mask[..., None]).sum(1)

    def logits(self, tokens: Tensor, mask: Tensor, codes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the frame after the last position, each code the likeliest one, or `codes` [K]: ([K, V], codes [K])."""
        last = self.stack("backbone", self.embed(tokens, mask))[-1]
        rows = [self.w["codebook0_head.weight"] @ last]
        inputs, chosen = [last], []
        for book in range(BOOKS):
            code = int(rows[-1][:2048].argmax()) if codes is None else int(codes[book])
            chosen.append(code)
            if book == BOOKS - 1:
                break
            inputs.append(self.w["audio_embeddings.weight"][book * VOCAB + code])
            hidden = self.stack("decoder", F.linear(torch.stack(inputs), self.w["projection.weight"]))
            rows.append(hidden[-1] @ self.w["audio_head"][book])
        return torch.stack(rows), torch.tensor(chosen)


class _Codec:
    """Says what codec the model reads; nothing is decoded here."""

    name, num_codebooks, codebook_size = "none", BOOKS, 2048


@torch.no_grad()
def assert_as_published(model: CSM, theirs: PublishedCSM, ids: list[int], steps: int = 3) -> None:
    """Equal logits of a frame after a text of `ids`, and `steps` equal frames of greedy codes."""
    prompt = torch.zeros(len(ids), BOOKS + 1, dtype=torch.int64)
    prompt[:, -1] = torch.tensor(ids)
    mask = torch.zeros_like(prompt, dtype=torch.bool)
    mask[:, -1] = True
    states = model.backbone_states(prompt[None], mask[None], torch.arange(len(ids))[None])[:, -1]
    given = torch.randint(0, 2048, (BOOKS,), generator=torch.Generator().manual_seed(3))
    expected, _ = theirs.logits(prompt, mask, given)
    assert expected.std() > 0.5
    torch.testing.assert_close(model.codebook0_head(states)[0], expected[0], atol=1e-4, rtol=1e-4)
    found = model.decoder_logits(states, given[None, :-1])[:, 0]
    torch.testing.assert_close(found, expected[1:], atol=1e-4, rtol=1e-4)

    ours = Generator(model, _Codec(), None).generate_codes(prompt, mask, max_frames=steps, temperature=0)
    for step in range(steps):
        _, codes = theirs.logits(prompt, mask, None)
        assert torch.equal(codes, ours[:, step]), step
        prompt = torch.cat((prompt, F.pad(codes, (0, 1))[None]))
        mask = torch.cat((mask, torch.tensor([[True] * BOOKS + [False]])))
