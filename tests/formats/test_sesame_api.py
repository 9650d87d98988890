"""Sesame's Python API, with its signatures and its README's code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moshi.models import loaders

from csm import load_csm_1b
from tests.hub_repo import cache_repo

RATE = 24_000
pytestmark = pytest.mark.usefixtures("narrow_mimi")


def test_load_csm_1b_has_sesames_signatures(exported, small_mimi, hub_cache):
    for generator in (
        load_csm_1b(str(exported["all"]), "cpu", codec_path=str(small_mimi)),
        load_csm_1b(exported["all"] / "model.safetensors", device="cpu", codec_path=str(small_mimi)),
    ):
        assert generator.sample_rate == RATE and generator.model.audio_head.dtype == torch.bfloat16
        audio = generator.generate(text="Hello.", speaker=0, context=[], max_audio_length_ms=240)
        assert audio.ndim == 1
        with pytest.raises(ValueError, match="too long"):  # 320 positions leave no room for Sesame's default of 90 s
            generator.generate("Hello.", 0, [])
    for call in (
        lambda: load_csm_1b("cpu"),
        lambda: load_csm_1b(device="cpu"),
        lambda: load_csm_1b(torch.device("cpu")),
    ):
        with pytest.raises(FileNotFoundError, match=r"sesame/csm-1b: no such path, and it cannot be fetched"):
            call()


@pytest.mark.slow
def test_readme_snippet_of_sesames_api(exported, small_mimi, hub_cache, tmp_path, monkeypatch):
    """README's code as it stands, offline, from a hub cache that holds sesame/csm-1b and Mimi."""
    cache_repo(hub_cache, "sesame/csm-1b", {file.name: file for file in exported["sesame"].iterdir()})
    cache_repo(hub_cache, loaders.DEFAULT_REPO, {loaders.MIMI_NAME: small_mimi})
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    snippet = next(block for block in readme.split("```python\n") if "load_csm_1b(device=device)" in block)
    names: dict = {}
    torch.manual_seed(0)
    exec(snippet.split("```")[0], names)
    assert names["audio"].ndim == 1 and names["generator"].sample_rate == RATE
    assert (tmp_path / "audio.wav").is_file()
