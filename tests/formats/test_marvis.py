"""Marvis: weights under torchtune's names, beside a config.json that states the shape in transformers' keys.

That follows from the public code around it, since neither files nor weights were at hand: its trainer and its loader in
mlx-audio have the formulas of tests/published_csm.py, and read these keys. The tokenizer is SmolLM2's, whose template
puts <|im_start|> and <|im_end|> around a turn, while the base model's configuration names <|endoftext|> for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import CsmForConditionalGeneration

from csm import load_generator
from csm.config import CSMConfig, TransformerConfig
from csm.formats import registry, sesame
from csm.formats.export import export
from csm.formats.layouts import SesameCheckpoint
from csm.formats.open import open_checkpoint
from csm.formats.tensors import LazyTensor
from csm.formats.weight_names import shapes
from csm.text import SESAME_PROMPT
from tests.published_csm import BOOKS, VOCAB, PublishedCSM, assert_as_published, published_shapes, random_weights

pytestmark = pytest.mark.usefixtures("narrow_mimi")
PUBLISHED = {
    "backbone": TransformerConfig(layers=6, dim=1536, heads=12, kv_heads=3, ffn_dim=8192),
    "decoder": TransformerConfig(layers=4, dim=1024, heads=8, kv_heads=2, ffn_dim=4096),
}
SMALL = {
    "backbone": TransformerConfig(layers=3, dim=48, heads=12, kv_heads=3, ffn_dim=72),
    "decoder": TransformerConfig(layers=2, dim=32, heads=8, kv_heads=2, ffn_dim=40),
}


def marvis_config(stacks: dict[str, TransformerConfig], text_vocab: int) -> dict[str, Any]:
    """A config.json with the keys that the public loaders ask for, named by flavors whatever the shape."""

    def stack(name: str, positions: int, shrink: int) -> dict[str, Any]:
        shape = stacks[name]
        scaling = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192 // shrink}
        scaling |= {"low_freq_factor": 1 / shrink, "high_freq_factor": 4 / shrink}
        return {
            "hidden_size": shape.dim,
            "intermediate_size": shape.ffn_dim,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.dim // shape.heads,
            "max_position_embeddings": positions,
            "rope_theta": 500_000,
            "rope_scaling": scaling,
            "vocab_size": VOCAB,
            "num_codebooks": BOOKS,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.02,
            "use_cache": True,
        }

    depth = {"model_type": "csm_depth_decoder_model", "backbone_hidden_size": stacks["backbone"].dim}
    return {
        "model_type": "csm",
        "backbone_flavor": "llama-250M",
        "decoder_flavor": "llama-60M",
        "audio_vocab_size": VOCAB,
        "audio_num_codebooks": BOOKS,
        "text_vocab_size": text_vocab,
        **stack("backbone", 2048, 8),
        "bos_token_id": 1,
        "pad_token_id": 2,
        "codebook_eos_token_id": 0,
        "codebook_pad_token_id": 2050,
        "tie_codebooks_embeddings": True,
        "tie_word_embeddings": False,
        "depth_decoder_config": {**depth, **stack("decoder", 33, 512)},
    }


def save_smollm2_like(folder: Path) -> None:
    """Single bytes and two pairs, 261 ids, of which the first three are the special tokens that SmolLM2 has there."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate([*names, *sorted(letters), "ab", "ba"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|>:0 $A:0 <|im_end|>:0",
        pair="<|im_start|>:0 $A:0 <|im_end|>:0 <|im_start|>:1 $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@pytest.fixture(scope="module")
def marvis(tmp_path_factory) -> Path:
    """A small one as the 250M is published: config.json, model.safetensors, tokenizer."""
    folder = tmp_path_factory.mktemp("marvis")
    save_file(random_weights(SMALL, 263), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(marvis_config(SMALL, 263)))
    save_smollm2_like(folder)
    return folder


def test_full_size():
    """On the meta device: 250M in the backbone's layers, 60M in the decoder's, from config.json or from the tensors."""
    expected = published_shapes(PUBLISHED, 49_152)
    stored = {name: LazyTensor(shape, torch.bfloat16, lambda: torch.empty(0)) for name, shape in expected.items()}
    content = marvis_config(PUBLISHED, 49_152)
    opened = SesameCheckpoint.open(stored, Path("marvis/model.safetensors"), content, None)
    assert opened.config == CSMConfig(**PUBLISHED, text_vocab_size=49_152, codebook_size=2048, num_codebooks=BOOKS)
    assert opened.weights.keys() == shapes(opened.config).keys()
    sizes = {
        stack: sum(torch.Size(shape).numel() for name, shape in expected.items() if name.startswith(f"{stack}.layers"))
        for stack in PUBLISHED
    }
    assert sizes == {"backbone": 261_900_288, "decoder": 60_825_600}
    lone = SesameCheckpoint.open(stored, Path("marvis/model_200000.pt"), {}, None)  # as its trainer saves it
    assert lone.config == opened.config
    assert (lone.tokenizer, lone.prompt) == ("Marvis-AI/marvis-tts-250m-v0.1", SESAME_PROMPT)
    assert registry.of_shape(opened.config).name == "marvis-250m"
    written = sesame.write_config(opened.config)
    assert (written["backbone_flavor"], written["decoder_flavor"]) == ("llama-250M", "llama-60M")


def test_a_directory_as_published(marvis):
    """The shape is that of config.json, not of the flavors; logits, greedy codes and ids of turns as in its code."""
    opened = open_checkpoint(marvis)
    assert (opened.layout, opened.config.backbone, opened.config.decoder) == ("sesame", *SMALL.values())
    tokenizer = opened.read_tokenizer()
    turn = tokenizer.encode_turn("Is it?", 0)
    assert turn == Tokenizer.from_file(str(marvis / "tokenizer.json")).encode("[0]Is it?").ids
    assert (turn[0], turn[-1], tokenizer.prompt) == (1, 2, SESAME_PROMPT)
    assert_as_published(opened.load_model(), PublishedCSM(load_file(marvis / "model.safetensors"), SMALL), turn)


def test_the_same_weights_under_transformers_names(marvis, small_mimi, tmp_path):
    """As its repositories for transformers have them: transformers computes the same, and saves the same model."""
    source = open_checkpoint(marvis, codec_path=str(small_mimi))
    export(source, tmp_path / "hf", "hf")
    theirs = CsmForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype="float32")
    model, tokenizer = source.load_model(), source.read_tokenizer()
    ids = torch.tensor([tokenizer.encode_turn("Is it?", 0)])
    tokens = torch.nn.functional.pad(ids[..., None], (BOOKS, 0))
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[..., -1] = True
    with torch.no_grad():
        states = model.backbone_states(tokens, mask, torch.arange(ids.shape[1])[None])
        expected = theirs(input_ids=ids).logits
        torch.testing.assert_close(model.codebook0_head(states), expected, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "saved")
    saved = open_checkpoint(tmp_path / "saved")
    assert (saved.layout, saved.config.backbone, saved.config.decoder) == ("hf", *SMALL.values())
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.load_model().state_dict().items())
    assert open_checkpoint(tmp_path / "hf").read_tokenizer().encode_turn("Is it?", 0) == ids[0].tolist()


@pytest.mark.parametrize("layout", ["sesame", "native"])
def test_exports_speak_as_it_does(marvis, small_mimi, tmp_path, layout):
    options = {"codec_path": str(small_mimi), "watermark": "none"}
    export(open_checkpoint(marvis, codec_path=str(small_mimi)), tmp_path / layout, layout)
    spoken = [
        load_generator(folder, **options).generate("Yes.", 0, [], max_audio_length_ms=160, seed=5)
        for folder in (marvis, tmp_path / layout)
    ]
    assert len(spoken[0]) == 2 * 1920 and torch.equal(*spoken)
