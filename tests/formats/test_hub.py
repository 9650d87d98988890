"""Hub repositories through the local cache, and pushing as far as it goes without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from csm import load_model
from csm.cli import main
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy, write_safetensors
from csm.model.csm import CSM
from tests.hub_repo import cache_repo
from tests.tiny import tiny_config


@pytest.fixture
def sesame_folder(tmp_path):
    """A tiny model as Sesame stores it: two flavors' worth of config.json and one file of weights."""
    from csm.formats import sesame, weight_names

    torch.manual_seed(0)
    model = CSM(tiny_config())
    folder = tmp_path / "sesame"
    folder.mkdir()
    write_safetensors(weight_names.to_sesame(lazy(model.state_dict()), model.config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(sesame.write_config(model.config)))
    return folder, model


def test_repo_ids_are_read_through_the_cache(sesame_folder, hub_cache):
    folder, model = sesame_folder
    cache_repo(hub_cache, "someone/tiny-csm", {file.name: file for file in folder.iterdir()})
    loaded = load_model("someone/tiny-csm")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_interrupted_download(sesame_folder, hub_cache):
    folder, _ = sesame_folder
    snapshot = cache_repo(hub_cache, "someone/tiny-csm", {file.name: file for file in folder.iterdir()})
    (snapshot / "model.safetensors").unlink()  # the hub's client leaves what is incomplete out of the snapshot
    with pytest.raises(FileNotFoundError, match="is not a model directory"):
        load_model("someone/tiny-csm")
    with pytest.raises(FileNotFoundError, match="someone/else: no such path, and it cannot be fetched from the hub"):
        load_model("someone/else")
    with pytest.raises(FileNotFoundError, match="does not exist, and is not a hub repository's name"):
        load_model("runs/mine/checkpoints/last.ckpt")


def test_push_dry_run_uploads_nothing(sesame_folder, tmp_path, monkeypatch, capsys, small_dataset):
    from csm.training.build import train
    from tests.conftest import TINY_OVERRIDES, compose_train

    steps = ["trainer.max_steps=1", "trainer.val_every_steps=1"]
    run = tmp_path / "run"
    train(compose_train([*TINY_OVERRIDES, *steps, f"data.path={small_dataset}", f"run_dir={run}"]))

    def csm(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["csm", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return stop.code
        return 0

    last = run / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert csm("export", last, "--out", tmp_path / "out", "--push-to-hub", "someone/tiny", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "nothing was uploaded to someone/tiny" in printed
    listed = {line.split()[0] for line in printed.splitlines() if line.endswith("MB")}
    expected = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert listed == expected and "README.md" in listed and "model.safetensors" in listed
    for wrong in (("--push-to-hub", "no spaces here", "--dry-run"), ("--dry-run",)):
        assert csm("export", last, "--out", tmp_path / "second", *wrong) == 2
        assert "owner/name" in capsys.readouterr().err.lower()
    # Mimi's layouts have no place for this codec; nothing half-written is left
    for layout in ("sesame", "hf", "all"):
        assert csm("export", last, "--out", tmp_path / f"as-{layout}", "--format", layout) == 2
        assert "speaks through the spectral codec" in capsys.readouterr().err
        assert not (tmp_path / f"as-{layout}").exists()


def test_damage_names_the_tensor(sesame_folder):
    folder, _ = sesame_folder
    file = folder / "model.safetensors"
    content = file.read_bytes()
    weights = load(content)  # not load_file: that maps the file, which is about to change

    def read(changed: dict) -> None:
        save_file(changed, file)
        open_checkpoint(folder)

    with pytest.raises(ValueError, match=r"tensor backbone\.layers\.1\.mlp\.w2\.weight \(48, 72\) is missing"):
        read({name: tensor for name, tensor in weights.items() if name != "backbone.layers.1.mlp.w2.weight"})
    with pytest.raises(ValueError, match=r"unexpected tensor backbone\.layers\.3"):
        read({**weights, "backbone.layers.3.sa_norm.scale": torch.ones(48)})
    file.write_bytes(content[:-5000])
    with pytest.raises(ValueError, match=r"cut short, first at tensor \S+ \(\d+"):
        open_checkpoint(folder)
    file.write_bytes(content)

    config = json.loads((folder / "config.json").read_text())
    del config["csm"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not a configuration in Sesame's layout .*one of llama-1B, llama-100M"):
        open_checkpoint(folder)
    config |= {"backbone_flavor": "llama-1B", "decoder_flavor": "llama-100M"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"tensor audio_head has shape \(4, 32, 16\), the model expects \(4, 1024, 16\)"
    ):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        open_checkpoint(folder)


def test_wrong_number_of_codebooks(sesame_folder):
    folder, _model = sesame_folder
    config = json.loads((folder / "config.json").read_text())
    config["audio_num_codebooks"] = config["csm"]["num_codebooks"] = 6
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"audio_head has shape \(4, 32, 16\), the model expects \(5, 32, 16\)"):
        open_checkpoint(folder)
    config["audio_num_codebooks"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match='its "csm" entry contradicts'):
        open_checkpoint(folder)


def test_text_vocabulary_mismatch(sesame_folder, llama_tokenizer):
    folder, _ = sesame_folder
    opened = open_checkpoint(folder, tokenizer_path=str(llama_tokenizer))
    advice = r"text vocabulary of 41; give the tokenizer the model was trained with \(tokenizer_path or --tokenizer; "
    with pytest.raises(ValueError, match=r"sesame: its tokenizer has 128256 ids, more than the model's " + advice):
        opened.read_tokenizer()


def test_missing_tokenizer_is_asked_for_by_the_options_there_are(sesame_folder, hub_cache):
    folder, _ = sesame_folder
    with pytest.raises(
        FileNotFoundError,
        match=r"tokenizer unsloth/Llama-3\.2-1B .* \(tokenizer_path or --tok",
    ):
        open_checkpoint(folder).read_tokenizer()


def test_pickles_with_code_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    for content in ({"text_embeddings.weight": Payload()}, Payload()):
        torch.save(content, tmp_path / "ckpt.pt")
        with pytest.raises(ValueError, match="holds Python objects, which could run code"):
            load_model(tmp_path / "ckpt.pt")
    torch.save({"weights": "none"}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        load_model(tmp_path / "ckpt.pt")
    torch.save([1], tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_model(tmp_path / "ckpt.pt")
    assert not (tmp_path / "owned").exists()
