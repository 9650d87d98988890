"""Recognition of layouts: of folders, files and repositories, by the names of tensors and the files that are listed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration

from csm import load_model
from csm.codec.mimi import MimiCodec
from csm.formats import sesame
from csm.formats.hub import fetch
from csm.formats.open import open_checkpoint
from csm.model.csm import CSM
from tests.hub_repo import hub_server

pytestmark = pytest.mark.usefixtures("narrow_mimi")


def assert_same_weights(model: CSM, expected: CSM) -> None:
    weights = expected.state_dict()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module", params=["hf", "all"])
def saved(request, exported, tmp_path_factory) -> tuple[Path, Path]:
    """(as one file, in shards): what transformers saves after it loaded an export; tokenizer files next to it.

    Loaded from `all`, as from csm-1b, its config.json keeps Sesame's keys, which transformers does not know.
    """
    model = CsmForConditionalGeneration.from_pretrained(exported[request.param], dtype="float32")
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "single")
    model.save_pretrained(folder / "shards", max_shard_size="1MB")
    config = json.loads((folder / "single" / "config.json").read_text())
    assert ("backbone_flavor" in config) == (request.param == "all")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for path in ("single", "shards"):
            shutil.copy(exported["hf"] / name, folder / path)
    return folder / "single", folder / "shards"


def test_what_transformers_saves_is_read_again(saved, exported, small_mimi):
    expected = open_checkpoint(exported["hf"])
    for path in saved:
        opened = open_checkpoint(path)
        assert (opened.layout, opened.config) == ("hf", expected.config)
        assert_same_weights(opened.load_model(), expected.load_model())
        assert opened.read_codec("cpu").identity == MimiCodec.load(small_mimi).identity
        assert opened.read_tokenizer().vocab_size == 260
    assert len(list(saved[1].glob("model-*.safetensors"))) > 1


def test_files_themselves_may_be_given(saved, exported):
    single, shards = saved
    expected = load_model(exported["native"])
    for file, layout in (
        (exported["native"] / "model.safetensors", "native"),
        (exported["sesame"] / "model.safetensors", "sesame"),
        (exported["hf"] / "model.safetensors", "hf"),
        (exported["all"] / "model.safetensors", "sesame"),
        (exported["all"] / "transformers.safetensors", "hf"),
        (single / "model.safetensors", "hf"),
        (shards / "model.safetensors.index.json", "hf"),
    ):
        opened = open_checkpoint(file)
        assert opened.layout == layout, file
        assert_same_weights(opened.load_model(), expected)


def test_pickled_weights_are_told_apart_by_their_names_too(exported, tmp_path):
    expected = load_model(exported["native"])
    stored = load_file(exported["hf"] / "model.safetensors")
    torch.save(stored, tmp_path / "pytorch_model.bin")
    shutil.copy(exported["hf"] / "config.json", tmp_path)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        assert open_checkpoint(path).layout == "hf"
        assert_same_weights(load_model(path), expected)

    # As training scripts save Sesame's model: the weights next to other things.
    weights = load_file(exported["sesame"] / "model.safetensors")
    folder = tmp_path / "finetuned"
    folder.mkdir()
    shutil.copy(exported["sesame"] / "config.json", folder)
    torch.save({"model": weights, "optimizer": {"state": {}}, "step": 3}, folder / "ckpt.pt")
    assert_same_weights(load_model(folder), expected)
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, folder / "ckpt.pt")
    with pytest.raises(ValueError, match=r"are not loaded \(argparse\.Namespace\); if you trust it") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    torch.save({"model": {**weights, "step": 3}}, folder / "ckpt.pt")
    with pytest.raises(ValueError, match=r"is not a dictionary of tensors .*: 'step' is a int"):
        load_model(folder)
    torch.save({name: tensor.to("meta") for name, tensor in weights.items()}, folder / "ckpt.pt")
    with pytest.raises(ValueError, match=r"ckpt\.pt: tensor \S+ has no values"):
        load_model(folder)


def test_a_directory_is_told_by_its_tensors_whatever_its_config_json_is_of(exported, tmp_path, monkeypatch):
    """Trainers write a config.json of their own beside the weights of Sesame's model."""
    config = open_checkpoint(exported["sesame"]).config
    monkeypatch.setattr(sesame, "FLAVORS", {"llama-1B": config.backbone, "llama-100M": config.decoder})
    shutil.copy(exported["sesame"] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"learning_rate": 1e-5, "model_type": "llama"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert open_checkpoint(path).layout == "sesame"
    weights = load_file(exported["sesame"] / "model.safetensors")
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"tensor \S+ is float8_e4m3fn; quantized weights are not read, give the orig"):
        load_model(tmp_path)


def test_what_is_no_csm_is_said_in_one_line(exported, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a CSM: its tensors are named neither as ours"):
        load_model(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"model\.safetensors is not a CSM: its tensors are named neither as ours"):
        load_model(tmp_path)
    (tmp_path / "hf").mkdir()
    shutil.copy(exported["hf"] / "model.safetensors", tmp_path / "hf")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json next to it"):
        load_model(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text('{"learning_rate": 1e-5}')
    with pytest.raises(ValueError, match=r"hf/config\.json: not a configuration of transformers' CSM"):
        load_model(tmp_path / "hf")
    shutil.copy(exported["hf"] / "config.json", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no weights \(model\.safetensors\)"):
        load_model(tmp_path / "hf")


def test_matrices_of_several_dtypes_are_loaded_in_one(exported, tmp_path):
    """The widest; norms, which are computed in fp32, may keep their own."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(exported["sesame"] / name, tmp_path)
    weights = load_file(exported["sesame"] / "model.safetensors")
    mixed = {
        name: tensor if "head" in name or "norm" in name else tensor.bfloat16() for name, tensor in weights.items()
    }
    save_file(mixed, tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in load_model(tmp_path).parameters()} == {torch.float32}
    half = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in weights.items()}
    save_file(half, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert {p.dtype for p in model.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.ndim == 1} == {torch.float32}
    quantized = {**weights, "projection.weight": torch.ones(16, 24, dtype=torch.int8)}
    save_file(quantized, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor projection\.weight is int8; quantized weights are not read"):
        load_model(tmp_path)


FETCH = """
import sys
from csm.formats.hub import fetch
for repo in sys.argv[1:]:
    fetch(repo)
"""


def test_of_a_repository_the_weights_that_it_lists_are_downloaded(exported, hub_cache, tmp_path):
    """The downloaded files follow from the list of files, not from config.json alone."""
    model = CsmForConditionalGeneration.from_pretrained(exported["all"], dtype="float32")
    model.save_pretrained(tmp_path / "made" / "shards", max_shard_size="1MB")
    model.save_pretrained(tmp_path / "made" / "single")
    index = "transformers.safetensors.index.json"
    config = {"backbone_flavor": "llama-1B", "model_type": "csm", "transformers_weights": index}
    shard = "transformers-00001-of-00002.safetensors"
    csm_1b = {"config.json": json.dumps(config), shard: "", index: json.dumps({"weight_map": {"a": shard}})}
    made: dict[str, dict[str, str]] = {
        "made/csm-1b": csm_1b | {"model.safetensors": "", "ckpt.pt": "", "prompts/a.wav": ""},
        "made/without-sesames-file": csm_1b,
        "made/lone": {"ckpt.pt": "", "README.md": ""},
        "made/misotts": {"model.safetensors": "", "README.md": ""},
        "made/native": {"config.json": '{"format_version": 1}', "model.safetensors": "", "codec.safetensors": ""},
        "made/shards": {"optimizer.pt": ""},
    }
    for repo, files in made.items():
        for name, content in files.items():
            (tmp_path / repo / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / repo / name).write_text(content)
    repos = {repo: tmp_path / repo for repo in (*made, "made/single")}
    with hub_server(repos) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", FETCH, *repos]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    def found(repo: str) -> set[str]:  # from here on offline: the cache is used as it is
        folder = fetch(repo)
        return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}

    small = {"config.json", "generation_config.json"}
    shards = {file.name for file in (tmp_path / "made" / "shards").glob("model-*")}
    assert found("made/shards") == small | {"model.safetensors.index.json"} | shards and len(shards) > 1
    assert found("made/single") == small | {"model.safetensors"}
    assert found("made/csm-1b") == {"config.json", "model.safetensors", index}
    assert found("made/without-sesames-file") == set(csm_1b)
    assert found("made/lone") == {"ckpt.pt"} and found("made/misotts") == {"model.safetensors"}
    assert found("made/native") == set(made["made/native"])
    for repo in ("made/shards", "made/single"):
        assert_same_weights(load_model(repo), load_model(exported["native"]))
