"""Model repositories on the Hugging Face hub: fetched into its cache, and pushed to."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import validate_repo_id

SMALL_FILES = ["*.json", "*.jinja", "tokenizer/*"]
"""Everything but weights: configurations, indexes, tokenizers, templates."""


def fetch(path_or_repo: str | Path) -> Path:
    """A local path as it is, or a hub repository's files, downloaded into the hub's cache if they are not there yet.

    Of a repository that holds weights in several layouts only one is downloaded. Offline (`HF_HUB_OFFLINE=1`) the
    cache is used as it is. Raises FileNotFoundError if it is neither a path nor to be had.
    """
    path = Path(path_or_repo)
    if path.exists():
        return path
    name = str(path_or_repo)
    if not _is_repo_id(name):
        raise FileNotFoundError(f"{name} does not exist, and is not a hub repository's name (owner/name) either")
    try:
        config = json.loads(Path(hf_hub_download(name, "config.json")).read_text())
        return Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, *_weight_files(name, config)]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FileNotFoundError(
            f"{name}: no such path, and it cannot be fetched from the hub ({type(error).__name__}: {reason}); "
            "download it where there is a network, accept its terms there if it is gated, and give its path"
        ) from error


def _weight_files(repo: str, config: dict) -> list[str]:
    """Patterns of the weights to download: Sesame's layout is one file, and half of what the hub holds of csm-1b."""
    if "backbone_flavor" in config or "format_version" in config:
        return ["model.safetensors", "codec.safetensors"]
    if config.get("transformers_weights"):
        return [config["transformers_weights"].split(".")[0] + "*.safetensors"]
    return ["model*.safetensors"]


def push(folder: Path, repo: str, private: bool, dry_run: bool) -> list[str]:
    """Uploads a model directory as repository `repo`, which is created if missing; returns the lines to print.

    dry_run: only lists what would be uploaded. Raises ValueError for an impossible name, and what the hub answers
    (no login, no rights) as OSError.
    """
    if not _is_repo_id(repo):
        raise ValueError(f"--push-to-hub {repo}: not a repository name, write owner/name")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(folder).as_posix():40s} {file.stat().st_size / 1e6:10.2f} MB" for file in files]
    if dry_run:
        return [f"dry run, nothing was uploaded to {repo}:", *lines]
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload CSM model")
    return [f"uploaded to {repo}:", *lines, str(commit.commit_url)]


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return name.count("/") == 1
