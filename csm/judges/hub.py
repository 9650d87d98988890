"""Weights of pretrained models: a local directory, or a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

_CONFIG_FILES = ["*.json", "*.txt"]
# In order of preference. Only the first kind a repository has is fetched: many hold the same weights several times.
_WEIGHT_FILES = [["model.safetensors", "model-*-of-*.safetensors"], ["pytorch_model.bin"]]


class ModelUnavailable(ValueError):
    """A model or its package is missing, or cannot do what is asked; the message is one line that says why."""


def fetch_model(path_or_repo: str) -> Path:
    """Directory of the model: `path_or_repo` itself, or the hub's local snapshot (named by its commit).

    Raises:
        ModelUnavailable: neither a directory nor a repository that can be reached or is in the local cache.
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    try:
        for weights in _WEIGHT_FILES:
            folder = Path(snapshot_download(path_or_repo, allow_patterns=_CONFIG_FILES + weights))
            if any(file for pattern in weights for file in folder.glob(pattern)):
                return folder
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelUnavailable(
            f"{path_or_repo} is not a local directory, not in the hub's local cache, and cannot be fetched from the hub"
        ) from error
    raise ModelUnavailable(f"{path_or_repo} holds neither safetensors nor PyTorch weights")
