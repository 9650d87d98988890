"""Llama-3's real tokenizer as a tokenizer.json, from the vocabulary file inside the llama-models package, and a small
one with its special tokens."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

PATTERN = (  # of the released tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = {128_000: "<|begin_of_text|>", 128_001: "<|end_of_text|>"}


def save_llama_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json and tokenizer_config.json with 128256 ids into `folder`."""
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None and spec.submodule_search_locations is not None
    ranks = {}
    for line in (Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model").read_bytes().splitlines():
        encoded, number = line.split()
        ranks[base64.b64decode(encoded)] = int(number)
    alphabet = _byte_alphabet()
    spelled = {token: "".join(map(alphabet.__getitem__, token)) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            a, b = token[:i], token[i:]
            if a in ranks and b in ranks:
                merges.append((rank, ranks[a], ranks[b], spelled[a], spelled[b]))
    model = models.BPE(
        {spelled[token]: rank for token, rank in ranks.items()},
        [(a, b) for *_, a, b in sorted(merges)],
        fuse_unk=False,
        ignore_merges=True,
    )
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    names = [NAMED.get(id, f"<|reserved_special_token_{id - 128_002}|>") for id in range(128_000, 128_256)]
    return _save(folder, model, [split], names)


def save_byte_level_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer of single bytes with Llama-3's BOS, EOS and first reserved tokens: 260 ids, quick to load."""
    vocabulary = {character: number for number, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    names = [*NAMED.values(), "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    return _save(folder, models.BPE(vocabulary, []), [], names)


def _save(folder: Path, model: models.BPE, pre: list[pre_tokenizers.PreTokenizer], special: list[str]) -> Path:
    tokenizer = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pre, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": NAMED[128_000], "eos_token": NAMED[128_001]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, recovered from the tokenizers library."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    assert sorted(alphabet.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return alphabet
