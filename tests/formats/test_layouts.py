"""Every layout: written, read back bit for bit, loaded by its own readers, and made to speak."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CsmForConditionalGeneration

from csm import Segment, load_csm_1b, load_generator, load_model
from csm.audio import load_audio
from csm.codec.mimi import MimiCodec
from csm.config import CodecConfig, CSMConfig, TransformerConfig
from csm.formats.export import LAYOUTS, export
from csm.formats.native import write_native
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import HFTokenizer
from tests.codec.conftest import make_babble

RATE = 24_000


@pytest.fixture(scope="module")
def source(tmp_path_factory, mimi_weights, llama_tokenizer):
    """A tiny random model over the real Mimi and the real Llama-3 tokenizer, as an opened native checkpoint."""
    torch.manual_seed(2)
    config = CSMConfig(
        backbone=TransformerConfig(layers=3, dim=24, heads=6, kv_heads=3, ffn_dim=40),
        decoder=TransformerConfig(layers=2, dim=16, heads=2, kv_heads=1, ffn_dim=36),
        text_vocab_size=128_256,
        codebook_size=2048,
        num_codebooks=32,
        max_seq_len=200,
        initializer_std=0.3,
    )
    folder = tmp_path_factory.mktemp("source") / "native"
    folder.mkdir()
    write_native(
        folder,
        weights=lazy(CSM(config).state_dict()),
        config=config,
        codec=CodecConfig(),
        codec_info=MimiCodec.load(mimi_weights).info,
        fitted_codec=None,
        tokenizer=HFTokenizer.load(llama_tokenizer),
        training={"step": 7},
    )
    return folder


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory, mimi_weights):
    """{layout: directory}."""
    folder = tmp_path_factory.mktemp("exported")
    for layout in LAYOUTS:
        export(open_checkpoint(source, codec_path=str(mimi_weights)), folder / layout, layout)
    yield {layout: folder / layout for layout in LAYOUTS}
    for file in folder.rglob("*.safetensors"):  # hundreds of MB
        file.unlink()


def assert_same_files(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_bit_for_bit(source, exported, layout, tmp_path, mimi_weights):
    """ours -> layout -> ours -> layout, config included."""
    opened = open_checkpoint(exported[layout], codec_path=str(mimi_weights) if layout != "hf" else None)
    assert opened.config == open_checkpoint(source).config
    assert opened.training == {"step": 7}
    expected = load_model(source).state_dict()
    found = opened.load_model().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    export(opened, tmp_path / "again", layout)
    for file in exported[layout].glob("*.safetensors"):
        assert_same_files(file, tmp_path / "again" / file.name)
    ours, again = (
        json.loads((folder / "config.json").read_text()) for folder in (exported[layout], tmp_path / "again")
    )
    assert ours == again
    for file in (tmp_path / "again").glob("*.safetensors"):
        file.unlink()


def test_hf_directory_works_offline(exported, hub_cache, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for layout in ("hf", "all"):
        processor = AutoProcessor.from_pretrained(exported[layout])
        assert not caplog.records, "transformers has something to say about the tokenizer"
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


def test_what_transformers_saves_is_read_again(exported, tmp_path, mimi_weights):
    model = CsmForConditionalGeneration.from_pretrained(exported["hf"], dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "saved" / name).symlink_to(exported["hf"] / name)
    saved, expected = open_checkpoint(tmp_path / "saved"), open_checkpoint(exported["hf"])
    assert saved.config == expected.config
    weights = saved.load_model().state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.load_model().state_dict().items())
    assert saved.read_codec("cpu").identity == MimiCodec.load(mimi_weights).identity


def test_code_on_the_model_card_speaks(exported, hub_cache, tmp_path, monkeypatch):
    card = (exported["hf"] / "README.md").read_text()
    code = next(block for block in card.split("```python\n") if "from transformers" in block).split("```")[0]
    (tmp_path / "hf").symlink_to(exported["hf"])  # the card calls it by its folder's name
    monkeypatch.chdir(tmp_path)
    exec(code.replace("output_audio=True", "output_audio=True, max_new_tokens=6"), {})
    assert len(load_audio(tmp_path / "hello.wav", RATE)) == 6 * 1920


def test_all_layouts_speak_alike(exported, mimi_weights):
    """Loaded from each layout, the model says the same; the hf directory brings its codec, the others are given it."""
    context = [Segment(speaker=1, text="Hello.", audio=make_babble(5000, seed=4))]
    spoken = {}
    for layout, folder in exported.items():
        generator = load_generator(folder, codec_path=None if layout == "hf" else str(mimi_weights))
        spoken[layout] = generator.generate("Yes.", 0, context, max_audio_length_ms=480, seed=5)
        assert spoken[layout].shape == (6 * 1920,) and spoken[layout].dtype == torch.float32
    for layout, audio in spoken.items():
        assert torch.equal(audio, spoken["native"]), layout


def test_hf_generates_what_we_generate(exported):
    """Greedy, through both complete pipelines: text, encoded audio context, codes, decoded sound."""
    folder = exported["hf"]
    clip = make_babble(2 * 1920, seed=6)
    generator = load_generator(folder)
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


def test_sesame_layout_as_sesame_writes_it(exported, tmp_path):
    """A lone ckpt.pt, with the masks that setup_caches leaves in it, beside a config.json with the flavors alone."""
    weights = load_file(exported["sesame"] / "model.safetensors")
    config = json.loads((exported["sesame"] / "config.json").read_text())
    masks = {"backbone_causal_mask": torch.ones(200, 200, dtype=torch.bool), "decoder_causal_mask": torch.ones(32, 32)}
    torch.save({**weights, **masks}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="is none of the known flavors"):
        load_model(tmp_path / "ckpt.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = load_model(exported["sesame"]).state_dict()
    for path in (tmp_path / "ckpt.pt", tmp_path):
        found = load_model(path).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_tied_embedding_once_or_twice_and_shards(exported, tmp_path):
    stored = load_file(exported["hf"] / "model.safetensors")
    stored = {name: tensor for name, tensor in stored.items() if not name.startswith("codec_model.")}
    expected = load_model(exported["hf"]).state_dict()
    (tmp_path / "config.json").write_text((exported["hf"] / "config.json").read_text())
    tied = ["backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"]
    for left_out in tied:
        save_file({name: t for name, t in stored.items() if name != left_out}, tmp_path / "model.safetensors")
        found = load_model(tmp_path).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    save_file({**stored, tied[0]: stored[tied[0]] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"embed_audio_tokens\.weight and .* differ"):
        load_model(tmp_path)

    (tmp_path / "model.safetensors").unlink()
    names = sorted(stored)
    shards = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for shard, part in shards.items():
        save_file({name: stored[name] for name in part}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = load_model(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2\.safetensors is missing"):
        load_model(tmp_path)


def test_bf16_export_halves_the_model_and_keeps_the_codec(source, tmp_path, mimi_weights):
    export(open_checkpoint(source, str(mimi_weights)), tmp_path / "hf", "hf", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    dtypes = {name.startswith("codec_model."): tensor.dtype for name, tensor in stored.items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "hf").audio_head.dtype == torch.bfloat16


def test_load_csm_1b_has_sesames_signatures(exported, mimi_weights, hub_cache):
    for generator in (
        load_csm_1b(str(exported["all"]), "cpu", codec_path=str(mimi_weights)),
        load_csm_1b(exported["all"] / "model.safetensors", device="cpu", codec_path=str(mimi_weights)),
    ):
        assert generator.sample_rate == RATE and generator.model.audio_head.dtype == torch.bfloat16
        audio = generator.generate(text="Hello.", speaker=0, context=[], max_audio_length_ms=240)
        assert audio.ndim == 1
        with pytest.raises(ValueError, match="too long"):  # 200 positions leave no room for Sesame's default of 90 s
            generator.generate("Hello.", 0, [])
    for call in (
        lambda: load_csm_1b("cpu"),
        lambda: load_csm_1b(device="cpu"),
        lambda: load_csm_1b(torch.device("cpu")),
    ):
        with pytest.raises(FileNotFoundError, match=r"sesame/csm-1b: no such path, and it cannot be fetched"):
            call()


def test_readme_snippet_of_sesames_api(exported, mimi_weights, hub_cache, tmp_path, monkeypatch):
    """README's code as it stands, offline, from a hub cache that holds sesame/csm-1b and Mimi."""
    from moshi.models import loaders

    files = {file.name: file for file in exported["sesame"].iterdir()}
    for repo, contents in (("sesame/csm-1b", files), (loaders.DEFAULT_REPO, {loaders.MIMI_NAME: mimi_weights})):
        root = hub_cache / f"models--{repo.replace('/', '--')}"
        snapshot = root / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("0" * 40)
        for name, file in contents.items():
            (snapshot / name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    snippet = next(block for block in readme.split("```python\n") if "load_csm_1b(device=device)" in block)
    names: dict = {}
    torch.manual_seed(0)
    exec(snippet.split("```")[0], names)
    assert names["audio"].ndim == 1 and names["generator"].sample_rate == RATE
    assert (tmp_path / "audio.wav").is_file()
