"""MisoTTS: Sesame's layout as one fp32 file without config.json, another decoder, and a space in its prompt.

Its published code (MisoLabsAI/MisoTTS models.py, generator.py) has the formulas of tests/published_csm.py.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from csm import Segment, load_generator, load_model
from csm.cli import build_parser
from csm.config import TokenizerConfig, TransformerConfig
from csm.formats import registry, sesame
from csm.formats.export import export
from csm.formats.init_weights import init_weights_from
from csm.formats.open import open_checkpoint
from csm.formats.tensors import LazyTensor
from csm.formats.weight_names import from_sesame, shapes
from csm.model.csm import CSM
from csm.text import MISO_PROMPT, SESAME_PROMPT, HFTokenizer, load_tokenizer
from tests.codec.conftest import make_babble
from tests.conftest import compose_train
from tests.llama_tokenizer import save_byte_level_tokenizer
from tests.published_csm import PublishedCSM, assert_as_published, published_shapes, random_weights

pytestmark = pytest.mark.usefixtures("narrow_mimi")
SMALL = {  # the ratio of heads, and of the widths to heads, as published
    "backbone": TransformerConfig(layers=3, dim=64, heads=8, kv_heads=2, ffn_dim=88),
    "decoder": TransformerConfig(layers=2, dim=48, heads=12, kv_heads=3, ffn_dim=56),
}
PUBLISHED = {
    "backbone": TransformerConfig(layers=32, dim=4096, heads=32, kv_heads=8, ffn_dim=14_336),
    "decoder": TransformerConfig(layers=8, dim=1536, heads=24, kv_heads=6, ffn_dim=6912),
}


def test_full_size_is_model_csm_8b():
    """8.19 billion parameters, on the meta device: the names and shapes of its file are those of our preset."""
    expected = published_shapes(PUBLISHED, 128_256)
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
    assert sesame.write_config(guess)["backbone_flavor"] == "custom-28x3072"


@pytest.fixture(scope="module")
def miso(tmp_path_factory) -> tuple[Path, Path]:
    """(a small one as it is published: one file and nothing else, a tokenizer to go with it)"""
    folder = tmp_path_factory.mktemp("miso")
    tokenizer = save_byte_level_tokenizer(folder / "tokenizer")
    (folder / "published").mkdir()
    save_file(random_weights(SMALL, 260), folder / "published" / "model.safetensors")
    return folder / "published", tokenizer


@pytest.fixture
def small_flavors(monkeypatch):
    for name, shape in zip(("llama-8B", "llama-300M"), SMALL.values(), strict=True):
        monkeypatch.setitem(sesame.FLAVORS, name, shape)


def test_logits_and_greedy_codes_as_published(miso, small_flavors):
    folder, tokenizer_path = miso
    checkpoint = open_checkpoint(folder, tokenizer_path=str(tokenizer_path))
    assert checkpoint.layout == "sesame" and checkpoint.config.decoder == SMALL["decoder"]
    theirs = PublishedCSM(load_file(folder / "model.safetensors"), SMALL)
    assert_as_published(checkpoint.load_model(), theirs, checkpoint.read_tokenizer().encode_turn("  Is it?", 1))


def test_a_tokenizer_put_beside_the_file_leaves_its_prompt(miso, small_flavors, tmp_path):
    """Its shape says that it is MisoTTS, whose prompt is not in the files of Llama's tokenizer."""
    published, tokenizer_path = miso
    folder = shutil.copytree(tokenizer_path.parent if tokenizer_path.is_file() else tokenizer_path, tmp_path / "miso")
    shutil.copy(published / "model.safetensors", folder)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.read_tokenizer().prompt == MISO_PROMPT
    assert checkpoint.read_properties() == open_checkpoint(published).read_properties()
    # a tokenizer that says its own prompt is believed
    HFTokenizer.load(tokenizer_path, default_prompt=SESAME_PROMPT).save(folder)
    assert open_checkpoint(folder).read_tokenizer().prompt == SESAME_PROMPT


def test_its_vocabulary_is_extended_with_the_tokenizer_named(miso, small_flavors, small_mimi, tmp_path):
    """The file carries no tokenizer, and the new vocabulary says how its turns are written."""
    folder, tokenizer_path = miso
    (tmp_path / "tokens.txt").write_text("ƒa\nƒb\n", encoding="utf-8")
    command = [
        *("extend-vocabulary", str(folder), "--tokens", str(tmp_path / "tokens.txt"), "--codec"),
        str(small_mimi),
    ]
    arguments = build_parser().parse_args([*command, f"--own-tokenizer={tokenizer_path}", f"--out={tmp_path / 'out'}"])
    arguments.run(arguments)
    tokenizer = open_checkpoint(tmp_path / "out").read_tokenizer()
    assert tokenizer.prompt == MISO_PROMPT and len(tokenizer.encode("ƒa")) == 1


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
