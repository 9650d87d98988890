"""MisoTTS: Sesame's layout as one fp32 file without config.json, another decoder, and a space in its prompt.

Its model is written out here from its published code (MisoLabsAI/MisoTTS models.py, generator.py): torchtune's Llama,
which turns neighbouring pairs of the rotary positions and takes norms in float32, and frames that are drawn greedily
with everything computed anew for each code.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from csm import Segment, load_generator, load_model
from csm.config import TokenizerConfig, TransformerConfig
from csm.formats import registry, sesame
from csm.formats.export import export
from csm.formats.init_weights import init_weights_from
from csm.formats.open import open_checkpoint
from csm.formats.tensors import LazyTensor
from csm.formats.weight_names import from_sesame, shapes
from csm.inference.generator import Generator
from csm.model.csm import CSM
from csm.text import MISO_PROMPT, SESAME_PROMPT, HFTokenizer, load_tokenizer
from tests.codec.conftest import make_babble
from tests.conftest import compose_train
from tests.llama_tokenizer import save_byte_level_tokenizer

pytestmark = pytest.mark.usefixtures("narrow_mimi")
VOCAB, BOOKS = 2051, 32
SMALL = {  # the ratio of heads, and of the widths to heads, as published
    "llama-8B": TransformerConfig(layers=3, dim=64, heads=8, kv_heads=2, ffn_dim=88),
    "llama-300M": TransformerConfig(layers=2, dim=48, heads=12, kv_heads=3, ffn_dim=56),
}
PUBLISHED = {  # layers, width, heads, kv heads, ffn
    "backbone": (32, 4096, 32, 8, 14_336),
    "decoder": (8, 1536, 24, 6, 6912),
}


def miso_shapes(stacks: dict[str, tuple[int, int, int, int, int]], text_vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its parameters, from the constructors of its published model."""
    found: dict[str, tuple[int, ...]] = {}
    for stack, (layers, width, heads, kv_heads, ffn) in stacks.items():
        head = width // heads
        for n in range(layers):
            found |= {
                f"{stack}.layers.{n}.{name}": shape
                for name, shape in {
                    "attn.q_proj.weight": (heads * head, width),
                    "attn.k_proj.weight": (kv_heads * head, width),
                    "attn.v_proj.weight": (kv_heads * head, width),
                    "attn.output_proj.weight": (width, heads * head),
                    "mlp.w1.weight": (ffn, width),
                    "mlp.w2.weight": (width, ffn),
                    "mlp.w3.weight": (ffn, width),
                    "sa_norm.scale": (width,),
                    "mlp_norm.scale": (width,),
                }.items()
            }
        found[f"{stack}.norm.scale"] = (width,)
    wide, narrow = stacks["backbone"][1], stacks["decoder"][1]
    return found | {
        "text_embeddings.weight": (text_vocab, wide),
        "audio_embeddings.weight": (VOCAB * BOOKS, wide),
        "projection.weight": (narrow, wide),
        "codebook0_head.weight": (VOCAB, wide),
        "audio_head": (BOOKS - 1, narrow, VOCAB),
    }


def test_full_size_is_model_csm_8b():
    """8.19 billion parameters, on the meta device: the names and shapes of its file are those of our preset."""
    expected = miso_shapes(PUBLISHED, 128_256)
    stored = {name: LazyTensor(shape, torch.float32, lambda: torch.empty(0)) for name, shape in expected.items()}
    config = sesame.config_from_weights(stored, "model.safetensors")
    preset = compose_train(["model=csm_8b", "data.path=x"]).model
    assert config == preset
    assert from_sesame(stored, config, "model.safetensors").keys() == shapes(preset).keys()
    with torch.device("meta"):
        model = CSM(preset)
    count = sum(torch.Size(shape).numel() for shape in expected.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == count == 8_188_122_112
    assert registry.of_shape(config).name == "misotts" and registry.of_shape(config).preset == "csm_8b"
    written = sesame.write_config(config)
    assert (written["backbone_flavor"], written["decoder_flavor"]) == ("llama-8B", "llama-300M")
    guess = compose_train(["model=csm_3b", "data.path=x"]).model
    assert sesame.write_config(guess)["decoder_flavor"] == "custom-6x1536"


@pytest.fixture(scope="module")
def miso(tmp_path_factory) -> tuple[Path, Path]:
    """(a small one as it is published: one file and nothing else, a tokenizer to go with it)"""
    stacks = {
        stack: (shape.layers, shape.dim, shape.heads, shape.kv_heads, shape.ffn_dim)
        for stack, shape in zip(PUBLISHED, SMALL.values(), strict=True)
    }
    folder = tmp_path_factory.mktemp("miso")
    tokenizer = save_byte_level_tokenizer(folder / "tokenizer")
    generator = torch.Generator().manual_seed(11)
    weights = {
        name: 1 + 0.1 * torch.randn(shape, generator=generator)
        if len(shape) == 1
        else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in miso_shapes(stacks, 260).items()
    }
    (folder / "published").mkdir()
    save_file(weights, folder / "published" / "model.safetensors")
    return folder / "published", tokenizer


@pytest.fixture
def small_flavors(monkeypatch):
    for name, shape in SMALL.items():
        monkeypatch.setitem(sesame.FLAVORS, name, shape)


class Miso:
    """The published formulas over the published names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = weights

    def frequencies(self, width: int) -> Tensor:
        """torchtune's Llama3ScaledRoPE: base 500000, scale 32, low 1, high 4, of 8192 positions."""
        plain = 1.0 / 500_000 ** (torch.arange(0, width, 2).float() / width)
        wavelength = 2 * torch.pi / plain
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        between = (1 - smooth) * plain / 32 + smooth * plain
        scaled = torch.where(wavelength > 8192 / 1.0, plain / 32, between)
        return torch.where(wavelength < 8192 / 4.0, plain, scaled)

    def stack(self, name: str, shape: TransformerConfig, x: Tensor) -> Tensor:
        """x [S, D] -> [S, D], after the final norm."""
        w, width = self.w, shape.dim // shape.heads
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
        last = self.stack("backbone", SMALL["llama-8B"], self.embed(tokens, mask))[-1]
        rows = [self.w["codebook0_head.weight"] @ last]
        inputs, chosen = [last], []
        for book in range(BOOKS):
            code = int(rows[-1][:2048].argmax()) if codes is None else int(codes[book])
            chosen.append(code)
            if book == BOOKS - 1:
                break
            inputs.append(self.w["audio_embeddings.weight"][book * VOCAB + code])
            hidden = self.stack(
                "decoder", SMALL["llama-300M"], F.linear(torch.stack(inputs), self.w["projection.weight"])
            )
            rows.append(hidden[-1] @ self.w["audio_head"][book])
        return torch.stack(rows), torch.tensor(chosen)


class _Codec:
    name, num_codebooks, codebook_size = "none", BOOKS, 2048


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_greedy_codes_as_published(miso, small_flavors):
    folder, tokenizer_path = miso
    checkpoint = open_checkpoint(folder, tokenizer_path=str(tokenizer_path))
    assert checkpoint.layout == "sesame" and checkpoint.config.decoder == SMALL["llama-300M"]
    model, theirs = checkpoint.load_model(), Miso(load_file(folder / "model.safetensors"))
    ids = checkpoint.read_tokenizer().encode_turn("  Is it?", 1)
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

    ours = Generator(model, _Codec(), None).generate_codes(prompt, mask, max_frames=3, temperature=0)
    for step in range(3):
        _, codes = theirs.logits(prompt, mask, None)
        assert torch.equal(codes, ours[:, step]), step
        prompt = torch.cat((prompt, F.pad(codes, (0, 1))[None]))
        mask = torch.cat((mask, torch.tensor([[True] * BOOKS + [False]])))


def test_turns_are_written_with_a_space_in_every_export(miso, small_flavors, small_mimi, tmp_path):
    folder, tokenizer_path = miso
    plain = HFTokenizer.load(tokenizer_path)
    assert plain.prompt == SESAME_PROMPT
    given = {"codec_path": str(small_mimi), "tokenizer_path": str(tokenizer_path)}
    source = open_checkpoint(folder, **given)
    tokenizer = source.read_tokenizer()
    assert tokenizer.prompt == MISO_PROMPT and tokenizer.identity != plain.identity
    turn = tokenizer.encode_turn("  Hello.", 3)
    assert turn == [plain.bos_id, *plain.encode("[3] Hello."), plain.eos_id] != plain.encode_turn("Hello.", 3)
    context = [Segment(speaker=1, text="Good morning.", audio=make_babble(3000, seed=4))]
    spoken = load_generator(folder, **given).generate("Yes.", 0, context, max_audio_length_ms=160, seed=5)
    for layout in ("native", "sesame", "hf"):
        export(source, tmp_path / layout, layout)
        again = open_checkpoint(tmp_path / layout, codec_path=str(small_mimi))
        assert again.read_tokenizer().encode_turn("  Hello.", 3) == turn, layout
        assert again.config == source.config
    generator = load_generator(tmp_path / "hf")
    assert torch.equal(generator.generate("Yes.", 0, context, max_audio_length_ms=160, seed=5), spoken)
    written = json.loads((tmp_path / "sesame" / "config.json").read_text())
    assert (written["backbone_flavor"], written["decoder_flavor"]) == ("llama-8B", "llama-300M")
    back, original = (load_file(path / "model.safetensors") for path in (tmp_path / "sesame", folder))
    assert back.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in back.items())


def test_pickled_as_its_loader_accepts_it(miso, small_flavors, tmp_path):
    folder, _ = miso
    weights = load_file(folder / "model.safetensors")
    expected = load_model(folder).state_dict()
    torch.save({"model_state_dict": {f"module.{name}": w for name, w in weights.items()}}, tmp_path / "ckpt.pt")
    found = load_model(tmp_path / "ckpt.pt").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_shape_takes_sesames_prompt(miso, small_flavors, exported):
    sesames = open_checkpoint(exported["sesame"])
    assert sesames.read_tokenizer().prompt == SESAME_PROMPT
    shape = replace(open_checkpoint(miso[0]).config, num_codebooks=8)
    assert registry.of_shape(shape).name == "misotts"  # its stacks decide
    assert registry.of_shape(sesames.config).name == "csm-1b"


def test_training_from_it_with_another_prompt_is_warned_of(miso, small_flavors, caplog):
    folder, tokenizer_path = miso
    model = load_model(folder)
    for prompt, warned in ((None, True), (MISO_PROMPT, False)):
        caplog.clear()
        init_weights_from(model, str(folder), TokenizerConfig(path=str(tokenizer_path), prompt=prompt))
        assert (
            "was trained on turns written with tokenizer.prompt=[{speaker}] {text}, this run has" in caplog.text
        ) is warned
    preset = compose_train(["tokenizer=misotts", f"tokenizer.path={tokenizer_path}", "data.path=x"]).tokenizer
    assert load_tokenizer(preset).prompt == MISO_PROMPT
