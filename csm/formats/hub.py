"""Model repositories on the Hugging Face hub: fetched into its cache, and pushed to."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import validate_repo_id

from csm.formats.native import CODEC_FILE
from csm.formats.recognize import read_json, weights_file
from csm.formats.tensors import read_index

SMALL_FILES = ["*.json", "*.jinja", "tokenizer/*"]
"""Everything but weights: configurations, indexes, tokenizers, templates."""


def fetch(path_or_repo: str | Path) -> Path:
    """A local path as it is, or the local snapshot of a hub repository, downloaded as far as it is not cached yet.

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
        snapshot = Path(snapshot_download(name, allow_patterns=SMALL_FILES))
        files = _listed_files(name, snapshot.name)
        if files is not None:
            snapshot_download(name, revision=snapshot.name, allow_patterns=_weight_files(snapshot, files))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FileNotFoundError(
            f"{name}: no such path, and it cannot be fetched from the hub ({type(error).__name__}: {reason}); "
            "download it where there is a network, accept its terms there if it is gated, and give its path"
        ) from error
    return snapshot


def _listed_files(repo: str, revision: str) -> list[str] | None:
    """All files of a repository; None if the hub does not answer, in which case only the cache is left."""
    try:
        return HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # its type depends on the HTTP library of huggingface_hub's version
        return None


def _weight_files(snapshot: Path, files: list[str]) -> list[str]:
    """The weights to download of a repository that lists `files`, whose small files lie in `snapshot`."""
    chosen = weights_file(files, read_json(snapshot / "config.json"))
    if chosen is None:
        return []
    if not chosen.endswith(".json"):
        return [chosen, CODEC_FILE]
    return sorted(set(read_index(snapshot / chosen).values()))


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
