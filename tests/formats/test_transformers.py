"""Exports for transformers, used by transformers: offline, alone, and with the same results as here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoProcessor, CsmForConditionalGeneration

from csm import Segment, load_generator
from csm.audio import load_audio
from csm.formats.export import export
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy
from tests.codec.conftest import make_babble

RATE = 24_000
pytestmark = pytest.mark.usefixtures("narrow_mimi")


@pytest.mark.slow
def test_hf_directory_works_offline(exported, hub_cache):
    for layout in ("hf", "all"):
        processor = AutoProcessor.from_pretrained(exported[layout])
        model, loading = CsmForConditionalGeneration.from_pretrained(exported[layout], output_loading_info=True)
        assert not any(loading.values()), loading
        assert all(not parameter.is_meta for parameter in model.parameters())
        clip = make_babble(4096, seed=1).numpy()
        conversation = [
            {"role": "0", "content": [{"type": "text", "text": "Hello."}, {"type": "audio", "audio": clip}]},
            {"role": "1", "content": [{"type": "text", "text": "And you?"}]},
        ]
        inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
        torch.manual_seed(0)
        audio = model.generate(**inputs, output_audio=True, max_new_tokens=6)
        assert audio[0].shape == (6 * 1920,) and audio[0].abs().max() > 0  # a reserved code would raise
        assert model.generation_config.suppress_tokens == [2048, 2049, 2050]
        assert model.depth_decoder.generation_config.suppress_tokens == [2048, 2049, 2050]
        assert (model.generation_config.top_k, model.generation_config.max_new_tokens) == (50, 125)


def test_code_on_the_model_card_speaks(exported, hub_cache, tmp_path, monkeypatch):
    card = (exported["hf"] / "README.md").read_text()
    code = next(block for block in card.split("```python\n") if "from transformers" in block).split("```")[0]
    (tmp_path / "hf").symlink_to(exported["hf"])  # the card calls it by its folder's name
    monkeypatch.chdir(tmp_path)
    exec(code.replace("output_audio=True", "output_audio=True, max_new_tokens=6"), {})
    assert len(load_audio(tmp_path / "hello.wav", RATE)) == 6 * 1920


@pytest.mark.slow
def test_hf_generates_what_we_generate(exported):
    """Greedy, through both complete pipelines: text, encoded audio context, codes, decoded sound."""
    folder = exported["hf"]
    clip = make_babble(2 * 1920, seed=6)
    generator = load_generator(folder, watermark="none")
    context = [Segment(speaker=0, text="Good morning.", audio=clip)]
    ours = generator.generate("Is it?", 1, context, max_audio_length_ms=800, temperature=0)
    processor = AutoProcessor.from_pretrained(folder)
    model = CsmForConditionalGeneration.from_pretrained(folder)
    conversation = [
        {"role": "0", "content": [{"type": "text", "text": "Good morning."}, {"type": "audio", "audio": clip.numpy()}]},
        {"role": "1", "content": [{"type": "text", "text": "Is it?"}]},
    ]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    greedy = {"do_sample": False, "depth_decoder_do_sample": False}
    theirs = model.generate(**inputs, output_audio=True, max_new_tokens=10, **greedy)
    torch.testing.assert_close(theirs[0], ours, atol=1e-5, rtol=0)


def test_a_model_of_fewer_codebooks_takes_as_many_of_mimi(exported, small_mimi, tmp_path):
    """Eight of 32: transformers encodes context with eight and says what we say; what it saves is read again."""
    source = open_checkpoint(exported["native"], codec_path=str(small_mimi))
    config = replace(source.config, num_codebooks=8)
    few = {
        "audio_embeddings.weight": lambda table: table[: 8 * config.audio_vocab_size],
        "audio_head": lambda heads: heads[:7],
    }
    weights = {name: few.get(name, lambda t: t)(tensor.read()) for name, tensor in source.weights.items()}
    codec = replace(source.codec, num_codebooks=8)
    checkpoint = replace(source, config=config, weights=lazy(weights), codec=codec, codec_info=None)
    export(checkpoint, tmp_path / "hf", "hf")
    generator = load_generator(tmp_path / "hf", watermark="none")
    assert generator.codec.num_codebooks == 8
    clip = make_babble(2 * 1920, seed=6)
    context = [Segment(speaker=0, text="Good morning.", audio=clip)]
    ours = generator.generate("Is it?", 1, context, max_audio_length_ms=320, temperature=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    model = CsmForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype="float32")
    conversation = [
        {"role": "0", "content": [{"type": "text", "text": "Good morning."}, {"type": "audio", "audio": clip.numpy()}]},
        {"role": "1", "content": [{"type": "text", "text": "Is it?"}]},
    ]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    greedy = {"do_sample": False, "depth_decoder_do_sample": False}
    theirs = model.generate(**inputs, output_audio=True, max_new_tokens=4, **greedy)
    torch.testing.assert_close(theirs[0], ours, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    codec = open_checkpoint(tmp_path / "saved").read_codec()
    assert codec.identity == generator.codec.identity
