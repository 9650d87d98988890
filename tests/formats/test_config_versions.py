"""config.json as the versions of transformers write it, from 4.52 to 5.24: fields that were renamed, moved, left out.

The dialects are those of files that 4.57.6 and 5.24.0 saved of one export, and of the published ones of 4.52.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CsmConfig

from csm.config import CSMConfig, RopeConfig, TransformerConfig
from csm.formats import hf
from csm.formats.export import export
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy
from csm.formats.weight_names import to_hf
from csm.model.csm import CSM

pytestmark = pytest.mark.usefixtures("narrow_mimi")
DIALECTS = ("4.52.1", "4.57.6", "5.24.0")


def dialect(content: dict[str, Any], version: str) -> dict[str, Any]:
    """One of our config.json, which has both generations' keys, as this version saves it."""
    content = copy.deepcopy(content)
    content["transformers_version"] = version
    for entry in (content, content["depth_decoder_config"]):
        dtype = entry.pop("torch_dtype")
        entry["torch_dtype" if version < "4.56" else "dtype"] = dtype
        if version.startswith("4."):
            del entry["rope_parameters"]
        else:
            del entry["rope_scaling"], entry["rope_theta"]
            entry.pop("tie_word_embeddings")
            entry |= {"pad_token_id": entry.get("pad_token_id"), "eos_token_id": None}
    if version.startswith("5."):
        content["tie_word_embeddings"] = True  # which 4 refuses to read
        content["codec_config"]["rope_parameters"] = {"rope_theta": 10_000.0, "rope_type": "default"}
    return content


@pytest.mark.parametrize("version", DIALECTS)
def test_every_dialect_is_read_and_written_for_all(exported, tmp_path, version, small_mimi):
    for file in exported["hf"].iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    content = dialect(json.loads((exported["hf"] / "config.json").read_text()), version)
    (tmp_path / "config.json").write_text(json.dumps(content))
    opened, expected = open_checkpoint(tmp_path), open_checkpoint(exported["hf"])
    assert (opened.layout, opened.config) == ("hf", expected.config)
    weights = expected.load_model().state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in opened.load_model().state_dict().items())
    export(opened, tmp_path / "again", "hf")  # what 5 saves is made readable for 4 by exporting it again
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written == json.loads((exported["hf"] / "config.json").read_text())
    assert CsmConfig.from_pretrained(tmp_path / "again").depth_decoder_config.rope_scaling["rope_type"] == "llama3"


SMALLER = CSMConfig(
    backbone=TransformerConfig(layers=6, dim=1536, heads=12, kv_heads=3, ffn_dim=8192),
    decoder=TransformerConfig(layers=4, dim=1024, heads=8, kv_heads=2, ffn_dim=8192),
    text_vocab_size=49_152,
    codebook_size=2048,
    num_codebooks=32,
)


def test_what_a_file_leaves_out_has_transformers_defaults():
    """A shape that is stated as differences from csm-1b's alone, under another name of the vocabulary."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 1024}
    scaling |= {"low_freq_factor": 0.125, "high_freq_factor": 0.5}
    of_depth = scaling | {"low_freq_factor": 2**-9, "high_freq_factor": 2**-7, "original_max_position_embeddings": 16}
    content = {
        "model_type": "csm",
        "hidden_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 3,
        "text_vocab_size": 49_152,
        "codebook_size": 2051,
        "rope_scaling": scaling,
        "depth_decoder_config": {"rope_scaling": of_depth, "backbone_hidden_size": 1536, "num_codebooks": 32},
    }
    assert hf.read_config(content, "config.json") == SMALLER
    theirs = CsmConfig(**content)
    for defaults, entry in ((hf.BACKBONE_DEFAULTS, theirs), (hf.DEPTH_DEFAULTS, theirs.depth_decoder_config)):
        for name, value in defaults.items():
            if name not in content and name != "codec_config":
                assert getattr(entry, name) == value, name
    assert (theirs.codec_config.num_quantizers, theirs.codec_config.codebook_size) == (32, 2048)
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "rope_scaling": None}
    depth = content["depth_decoder_config"] | plain | {"num_key_value_heads": None}
    found = hf.read_config(content | plain | {"depth_decoder_config": depth}, "config.json")
    assert found.rope == RopeConfig(base=10_000.0, scale_factor=1.0) and found.decoder.kv_heads == 8


def test_a_folder_without_codec_or_template_is_read(exported, tmp_path):
    """As fine-tuning scripts leave one: weights in bf16, tokenizer, no Mimi, no chat template."""
    torch.manual_seed(4)
    config = open_checkpoint(exported["hf"]).config
    weights = to_hf(lazy(CSM(config).bfloat16().state_dict()))
    save_file({name: tensor.read().clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    content = dialect(json.loads((exported["hf"] / "config.json").read_text()), "5.24.0")
    del content["codec_config"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    os.link(exported["hf"] / "tokenizer.json", tmp_path / "tokenizer.json")
    opened = open_checkpoint(tmp_path)
    assert opened.config == config and opened.codec.path is None
    assert opened.load_model().audio_head.dtype == torch.bfloat16
    assert opened.read_tokenizer().encode_turn("Hi.", 1) == open_checkpoint(
        exported["hf"]
    ).read_tokenizer().encode_turn("Hi.", 1)
