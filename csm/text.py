"""Text tokenizers behind one interface that encodes the text of a turn: BOS + "[speaker]text" + EOS.

`HFTokenizer` reads any Hugging Face fast tokenizer (Llama-3's by default, as in the released CSM); `ByteTokenizer` is
built in and needs no download. How speaker and text are put together is a property of the tokenizer, its `prompt`.
Every checkpoint carries its tokenizer, prompt included, in the form that `save` writes.
"""

from __future__ import annotations

import hashlib
import json
import string
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer, models

from csm.config import TokenizerConfig, TokenizerKind
from csm.spoken_text import check_normalizer, spoken_english

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
BYTES_FILE = "byte_tokenizer.json"
BYTES_FORMAT = "csm-byte-tokenizer-1"
PROMPT_KEY = "csm_prompt"
NORMALIZE_KEY = "csm_normalize"
"""Of tokenizer_config.json and byte_tokenizer.json. Tokenizers that were not saved here have neither."""

SESAME_PROMPT = "[{speaker}]{text}"
MISO_PROMPT = "[{speaker}] {text}"

BOS_EOS_NAMES = (("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>"), ("<bos>", "<eos>"))
"""Tried in this order when neither tokenizer.json nor a tokenizer_config.json beside it names them."""


class TextTokenizer(ABC):
    """Turns the text of a turn into ids 0 .. vocab_size - 1."""

    vocab_size: int
    bos_id: int
    eos_id: int
    prompt: str
    """How speaker and text are written between BOS and EOS, for `str.format`: Sesame's is "[{speaker}]{text}"."""
    normalize: str | None
    """Name of the normalizer of turns' texts (csm/spoken_text.py); None: texts are encoded as they are."""

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
        """BOS + speaker and text as `prompt` says + EOS. A prompt with a space before the text takes the text without
        its own leading spaces, as MisoTTS does. The text is normalized first, if the tokenizer has a normalizer."""
        if self.normalize is not None:
            text = spoken_english(text)
        if strips_text(self.prompt):
            text = text.lstrip()
        return [self.bos_id, *self.encode(self.prompt.format(speaker=speaker, text=text)), self.eos_id]


def strips_text(prompt: str) -> bool:
    """Whether leading spaces of a turn's text are dropped: the prompt brings its own."""
    return prompt.endswith(" {text}")


def check_prompt(prompt: str, where: str) -> None:
    """Raises ValueError unless `prompt` names speaker and text once each, the text last. where: begins the message."""
    try:
        fields = [name for _, name, *_ in string.Formatter().parse(prompt) if name is not None]
        ends = prompt.endswith("{text}")
    except ValueError:
        fields, ends = [], False
    if sorted(fields) != ["speaker", "text"] or not ends:
        raise ValueError(
            f"{where}: the prompt {prompt!r} must name {{speaker}} and, at its end, {{text}}, once each, as in "
            f"{SESAME_PROMPT!r} (Sesame) or {MISO_PROMPT!r} (MisoTTS)"
        )


class ByteTokenizer(TextTokenizer):
    """Ids 0..255 are the bytes of UTF-8; 256 is BOS, 257 EOS."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257

    def __init__(self, prompt: str = SESAME_PROMPT, normalize: str | None = None) -> None:
        check_prompt(prompt, "byte tokenizer")
        self.prompt, self.normalize = prompt, _checked(normalize)

    @property
    def identity(self) -> str:
        written = BYTES_FORMAT if self.prompt == SESAME_PROMPT else f"{BYTES_FORMAT} {self.prompt}"
        written += f" {self.normalize}" if self.normalize else ""
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def save(self, directory: str | Path) -> None:
        _write_json(Path(directory) / BYTES_FILE, {"format": BYTES_FORMAT, **saved_properties(self)})


class HFTokenizer(TextTokenizer):
    """A Hugging Face fast tokenizer. BOS and EOS are added here, because stock Llama-3 adds no EOS."""

    def __init__(
        self, tokenizer: Tokenizer, bos: str, eos: str, prompt: str = SESAME_PROMPT, normalize: str | None = None
    ) -> None:
        """`bos` and `eos` are names of tokens in `tokenizer`."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.bos, self.eos, self.prompt, self.normalize = bos, eos, prompt, _checked(normalize)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id = tokenizer.token_to_id(bos), tokenizer.token_to_id(eos)

    @cached_property
    def identity(self) -> str:  # computed when asked for: for Llama-3's it takes half a second
        prompt = [] if self.prompt == SESAME_PROMPT else [self.prompt]
        normalize = [{"normalize": self.normalize}] if self.normalize else []
        canonical = json.dumps([self.content(), self.bos, self.eos, *prompt, *normalize], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def load(
        cls,
        source: str | Path,
        prompt: str | None = None,
        default_prompt: str = SESAME_PROMPT,
        normalize: str | None = None,
        saved: bool = False,
    ) -> HFTokenizer:
        """Reads a directory with tokenizer.json, such a file itself, or a hub repository id.

        BOS and EOS are those that its template (TemplateProcessing) puts around a text. Where it leaves one out, it is
        the one that the tokenizer_config.json names, and that comes first in a file that `save` wrote.

        saved: `save` wrote it. A tokenizer_config.json with a prompt says so itself.

        prompt: of the turns. None takes what the tokenizer_config.json says, as `save` writes it, else the default.
        normalize: of their texts. None takes what the tokenizer_config.json says, else there is none.

        Raises:
            FileNotFoundError: there is no such file or directory and the hub does not have it or does not answer.
            ValueError: it cannot be read, names no BOS and EOS token, or the prompt is no prompt.
        """
        file, config_file = _find_files(source)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for whatever its parser meets
            raise ValueError(f"{file}: not a readable tokenizer.json ({error})") from error
        config = _read_json(config_file) if config_file else {}
        prompt = prompt or config.get(PROMPT_KEY) or default_prompt
        check_prompt(prompt, f"tokenizer {source}")
        normalize = normalize or config.get(NORMALIZE_KEY)
        named = [_token_name(config.get(key)) for key in ("bos_token", "eos_token")]
        stated = _template_names(tokenizer)
        first, second = (named, stated) if saved or PROMPT_KEY in config else (stated, named)
        known = [
            _in_vocabulary(tokenizer, a) or _in_vocabulary(tokenizer, b) for a, b in zip(first, second, strict=True)
        ]
        for bos, eos in (known, *BOS_EOS_NAMES):
            agrees = known[0] in (None, bos) and known[1] in (None, eos)
            if bos and eos and agrees and _in_vocabulary(tokenizer, bos) and _in_vocabulary(tokenizer, eos):
                return cls(tokenizer, bos, eos, prompt, normalize)
        raise ValueError(
            f"tokenizer {source}: has no BOS and EOS token; name them as bos_token and eos_token in a {CONFIG_FILE} "
            f"next to its {TOKENIZER_FILE}"
        )

    def content(self) -> dict[str, Any]:
        """A copy of the tokenizer.json."""
        return json.loads(self._tokenizer.to_str())

    def config(self) -> dict[str, Any]:
        """Contents of the tokenizer_config.json."""
        # Without the entry, transformers 4 switches the leading space of a byte-level tokenizer off.
        spaced = {"add_prefix_space": True} if getattr(self._tokenizer.pre_tokenizer, "add_prefix_space", False) else {}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "clean_up_tokenization_spaces": False,
            # Without it transformers also returns token_type_ids, which CSM's generate() refuses.
            "model_input_names": ["input_ids", "attention_mask"],
            **spaced,
            **saved_properties(self),
        }

    def vocabulary(self) -> dict[str, int]:
        """{piece: id} as the tokenizer spells pieces, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True  # set on every call: copies in worker processes lose it
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads as well."""
        _write_json(Path(directory) / CONFIG_FILE, self.config())
        self._tokenizer.save(str(Path(directory) / TOKENIZER_FILE))


def saved_properties(tokenizer: TextTokenizer) -> dict[str, str]:
    """Entries of a tokenizer's files about how turns are written."""
    normalize = {NORMALIZE_KEY: tokenizer.normalize} if tokenizer.normalize else {}
    return {PROMPT_KEY: tokenizer.prompt, **normalize}


def _checked(normalize: str | None) -> str | None:
    if normalize is not None:
        check_normalizer(normalize)
    return normalize


def load_tokenizer(cfg: TokenizerConfig) -> TextTokenizer:
    """Builds the tokenizer that `cfg` describes.

    Raises:
        FileNotFoundError: it is neither a local path nor to be had from the hub.
        ValueError: unreadable, without BOS or EOS, or with more ids than `cfg.vocab_size`.
    """
    tokenizer: TextTokenizer
    if cfg.kind is TokenizerKind.bytes:
        tokenizer = ByteTokenizer(cfg.prompt or SESAME_PROMPT, cfg.normalize)
    elif cfg.path is None:
        raise ValueError("tokenizer.kind=hf needs tokenizer.path: a directory, a tokenizer.json or a hub repo id")
    else:
        tokenizer = HFTokenizer.load(cfg.path, cfg.prompt, normalize=cfg.normalize)
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
        content = _read_json(directory / BYTES_FILE)
        found = content.get("format")
        if found != BYTES_FORMAT:
            raise ValueError(f"{directory / BYTES_FILE}: unknown format {found!r}, expected {BYTES_FORMAT!r}")
        return ByteTokenizer(content.get(PROMPT_KEY, SESAME_PROMPT), content.get(NORMALIZE_KEY))
    if (directory / TOKENIZER_FILE).is_file():
        return HFTokenizer.load(directory, saved=True)
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


def _template_names(tokenizer: Tokenizer) -> list[str | None]:
    """The tokens that the tokenizer's template puts before and after a text; None where it is not exactly one."""
    if tokenizer.post_processor is None:
        return [None, None]
    alone = Tokenizer(models.BPE())  # shows the template without the vocabulary, whose JSON takes half a second
    alone.post_processor = tokenizer.post_processor
    processor = json.loads(alone.to_str())["post_processor"]
    for part in processor["processors"] if processor["type"] == "Sequence" else [processor]:
        if part["type"] == "TemplateProcessing":
            names = [piece.get("SpecialToken", {}).get("id") for piece in part["single"]]
            text = names.index(None)
            around = names[:text], names[text + 1 :]
            return [side[0] if len(side) == 1 else None for side in around]
    return [None, None]


def _in_vocabulary(tokenizer: Tokenizer, token: str | None) -> str | None:
    """The token, if there is one and the tokenizer has it."""
    return token if token is not None and tokenizer.token_to_id(token) is not None else None


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
