"""Text tokenizers behind one interface that encodes the text of a turn: BOS + "[speaker]text" + EOS.

`HFTokenizer` reads any Hugging Face fast tokenizer (Llama-3's by default, as in the released CSM); `ByteTokenizer` is
built in and needs no download. Every checkpoint carries its tokenizer in the form that `save` writes.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer

from csm.config import TokenizerConfig, TokenizerKind

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
BYTES_FILE = "byte_tokenizer.json"
BYTES_FORMAT = "csm-byte-tokenizer-1"

BOS_EOS_NAMES = (("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>"), ("<bos>", "<eos>"))
"""Tried in this order when a lone tokenizer.json does not come with a tokenizer_config.json that names them."""


class TextTokenizer(ABC):
    """Turns the text of a turn into ids 0 .. vocab_size - 1."""

    vocab_size: int
    bos_id: int
    eos_id: int

    @property
    @abstractmethod
    def identity(self) -> str:
        """16 hex digits; equal if and only if the same text gives the same ids."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without BOS and EOS. Names of special tokens in the text are ordinary characters."""

    @abstractmethod
    def save(self, directory: str | Path) -> None:
        """Writes the files that `load_saved_tokenizer` reads into `directory`, which is created if missing."""

    def encode_turn(self, text: str, speaker: int) -> list[int]:
        """BOS + "[speaker]text" + EOS; there is no space after the bracket."""
        return [self.bos_id, *self.encode(f"[{speaker}]{text}"), self.eos_id]


class ByteTokenizer(TextTokenizer):
    """Ids 0..255 are the bytes of UTF-8; 256 is BOS, 257 EOS."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257
    identity = hashlib.sha256(BYTES_FORMAT.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def save(self, directory: str | Path) -> None:
        _write_json(Path(directory) / BYTES_FILE, {"format": BYTES_FORMAT})


class HFTokenizer(TextTokenizer):
    """A Hugging Face fast tokenizer. BOS and EOS are added here, because stock Llama-3 adds no EOS."""

    def __init__(self, tokenizer: Tokenizer, bos: str, eos: str) -> None:
        """`bos` and `eos` are names of tokens in `tokenizer`."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.bos, self.eos = bos, eos
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id = tokenizer.token_to_id(bos), tokenizer.token_to_id(eos)

    @cached_property
    def identity(self) -> str:  # computed when asked for: for Llama-3's it takes half a second
        canonical = json.dumps([self.content(), self.bos, self.eos], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, source: str | Path) -> HFTokenizer:
        """Reads a directory with tokenizer.json, such a file itself, or a hub repository id.

        Raises:
            FileNotFoundError: there is no such file or directory and the hub does not have it or does not answer.
            ValueError: it cannot be read, or names no BOS and EOS token.
        """
        file, config_file = _find_files(source)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for whatever its parser meets
            raise ValueError(f"{file}: not a readable tokenizer.json ({error})") from error
        config = _read_json(config_file) if config_file else {}
        named = tuple(_token_name(config.get(key)) for key in ("bos_token", "eos_token"))
        for bos, eos in (named, *BOS_EOS_NAMES):
            if bos and eos and None not in (tokenizer.token_to_id(bos), tokenizer.token_to_id(eos)):
                return cls(tokenizer, bos, eos)
        raise ValueError(
            f"tokenizer {source}: has no BOS and EOS token; name them as bos_token and eos_token in a {CONFIG_FILE} "
            f"next to its {TOKENIZER_FILE}"
        )

    def content(self) -> dict[str, Any]:
        """A copy of the tokenizer.json."""
        return json.loads(self._tokenizer.to_str())

    def encode(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True  # set on every call: copies in worker processes lose it
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads as well."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        _write_json(Path(directory) / CONFIG_FILE, config)
        self._tokenizer.save(str(Path(directory) / TOKENIZER_FILE))


def load_tokenizer(cfg: TokenizerConfig) -> TextTokenizer:
    """Builds the tokenizer that `cfg` describes.

    Raises:
        FileNotFoundError: it is neither a local path nor to be had from the hub.
        ValueError: unreadable, without BOS or EOS, or with more ids than `cfg.vocab_size`.
    """
    tokenizer: TextTokenizer
    if cfg.kind is TokenizerKind.bytes:
        tokenizer = ByteTokenizer()
    elif cfg.path is None:
        raise ValueError("tokenizer.kind=hf needs tokenizer.path: a directory, a tokenizer.json or a hub repo id")
    else:
        tokenizer = HFTokenizer.load(cfg.path)
    if tokenizer.vocab_size > cfg.vocab_size:
        raise ValueError(
            f"tokenizer {cfg.path or cfg.kind.value} has {tokenizer.vocab_size} ids, more than "
            f"tokenizer.vocab_size={cfg.vocab_size}; raise it (and the model's text_vocab_size)"
        )
    return tokenizer


def load_saved_tokenizer(directory: str | Path) -> TextTokenizer:
    """Reads a saved tokenizer. Raises FileNotFoundError if there is none, ValueError if it is damaged."""
    directory = Path(directory)
    if (directory / BYTES_FILE).is_file():
        found = _read_json(directory / BYTES_FILE).get("format")
        if found != BYTES_FORMAT:
            raise ValueError(f"{directory / BYTES_FILE}: unknown format {found!r}, expected {BYTES_FORMAT!r}")
        return ByteTokenizer()
    if (directory / TOKENIZER_FILE).is_file():
        return HFTokenizer.load(directory)
    raise FileNotFoundError(f"{directory}: holds no tokenizer (neither {TOKENIZER_FILE} nor {BYTES_FILE})")


def _find_files(source: str | Path) -> tuple[Path, Path | None]:
    """Local paths of the tokenizer.json of `source` and of its tokenizer_config.json, if there is one."""
    path = Path(source)
    if path.is_dir():
        path = path / TOKENIZER_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{source}: has no {TOKENIZER_FILE}; save it there with transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
    if path.is_file():
        config = path.with_name(CONFIG_FILE)
        return path, config if config.is_file() else None
    try:
        path = Path(hf_hub_download(str(source), TOKENIZER_FILE))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"tokenizer {source}: no such file or directory, and it cannot be fetched from the hub "
            f"({type(error).__name__}); give tokenizer.path=PATH or use tokenizer=bytes"
        ) from error
    try:
        return path, Path(hf_hub_download(str(source), CONFIG_FILE))
    except (OSError, ValueError):  # optional: BOS and EOS may have one of the usual names
        return path, None


def _token_name(entry: str | dict[str, Any] | None) -> str | None:
    """A token in tokenizer_config.json is a string or, with its properties, a mapping."""
    return entry["content"] if isinstance(entry, dict) else entry


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
