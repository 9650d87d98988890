"""Every layout: written, read back bit for bit, and made to speak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from csm import Segment, load_generator, load_model
from csm.config import CodecConfig
from csm.formats.export import LAYOUTS, export
from csm.formats.native import write_native
from csm.formats.open import open_checkpoint
from csm.text import MISO_PROMPT, ByteTokenizer
from tests.codec.conftest import make_babble

pytestmark = pytest.mark.usefixtures("narrow_mimi")


def assert_same_files(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_bit_for_bit(source, exported, layout, tmp_path, small_mimi):
    """ours -> layout -> ours -> layout, config included."""
    opened = open_checkpoint(exported[layout], codec_path=str(small_mimi) if layout != "hf" else None)
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


def test_all_layouts_speak_alike(exported, small_mimi):
    """Loaded from each layout, the model says the same; the hf directory brings its codec, the others are given it."""
    context = [Segment(speaker=1, text="Hello.", audio=make_babble(5000, seed=4))]
    spoken = {}
    for layout, folder in exported.items():
        generator = load_generator(folder, codec_path=None if layout == "hf" else str(small_mimi), watermark="none")
        spoken[layout] = generator.generate("Yes.", 0, context, max_audio_length_ms=480, seed=5)
        assert spoken[layout].shape == (6 * 1920,) and spoken[layout].dtype == torch.float32
    for layout, audio in spoken.items():
        assert torch.equal(audio, spoken["native"]), layout


def test_sesame_layout_as_sesame_writes_it(exported, tmp_path):
    """A lone ckpt.pt, with the masks that setup_caches leaves in it, next to a config.json with the flavors alone."""
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


def test_the_byte_tokenizer_is_kept_in_sesames_layout(source, small_mimi, tmp_path):
    native = open_checkpoint(source, codec_path=str(small_mimi))
    tokenizer = ByteTokenizer(MISO_PROMPT)
    (tmp_path / "bytes").mkdir()
    write_native(
        tmp_path / "bytes",
        weights=native.weights,
        config=native.config,
        codec=CodecConfig(),
        codec_info=native.codec_info,
        fitted_codec=None,
        tokenizer=tokenizer,
        training={},
    )
    export(open_checkpoint(tmp_path / "bytes", codec_path=str(small_mimi)), tmp_path / "sesame", "sesame")
    opened = open_checkpoint(tmp_path / "sesame", codec_path=str(small_mimi))
    assert opened.layout == "sesame" and opened.read_properties() == {"csm_prompt": MISO_PROMPT}
    assert opened.read_tokenizer().identity == tokenizer.identity
    export(opened, tmp_path / "again", "native")
    assert open_checkpoint(tmp_path / "again").read_tokenizer().encode_turn("Hi.", 1) == tokenizer.encode_turn("Hi.", 1)


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
    with pytest.raises(ValueError, match=r"embed_audio_tokens\.weight and .* differ, .* transformers 5\.0 to 5\.8"):
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


def test_bf16_export_halves_the_model_and_keeps_the_codec(source, tmp_path, small_mimi):
    export(open_checkpoint(source, str(small_mimi)), tmp_path / "hf", "hf", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    dtypes = {name.startswith("codec_model."): tensor.dtype for name, tensor in stored.items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "hf").audio_head.dtype == torch.bfloat16


def test_a_codec_that_was_saved_rounded_is_said(exported, tmp_path, caplog):
    """Export by transformers of a model that was loaded in bfloat16; its own export keeps float32, and is silent."""
    open_checkpoint(exported["hf"]).read_codec()
    assert not caplog.records
    stored = load_file(exported["hf"] / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in stored.items()}
    save_file(half, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((exported["hf"] / "config.json").read_text())
    codec = open_checkpoint(tmp_path).read_codec()
    assert {parameter.dtype for parameter in codec.model.parameters()} == {torch.float32}
    (message,) = caplog.messages
    assert "its Mimi was rounded to bfloat16 when it was saved" in message and "--codec FILE" in message
